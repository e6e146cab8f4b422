"""The processor time of commands that load a model anew, from the shell to their end.

One `pgembed search`, one `pgembed create`, and one `pgembed work --drain` of a single record: a
worker's way to its first claim; and the whole demonstration. Against the same commands with the
model opened by the library, as models are that this package leaves to it.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.bench import Bench
from benchmarks.database import drop_database, make_pipeline, new_database
from benchmarks.figures import Figure, Measured, Reach, interleaved, ratio
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.embedding import fingerprint, resolve_model
from pgqueue_embed.pipeline.model_identity import ModelIdentity
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL, Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.corpus import make_source

PART = "start"
MOST_SECONDS = {"search": 0.6, "work": 2.2}

_USUAL = "from pgqueue_embed.__main__ import main; main()"
_BY_LIBRARY = (
    "from pgqueue_embed.embedding import opening;"
    " from pgqueue_embed.vector_search import query_vector;"
    " from pgqueue_embed.worker import supervisor;"
    " opening.open_light = query_vector.open_light_encoder = lambda *_: None;"
    " supervisor.WORKER_PROGRAM = 'benchmarks.library_worker'; "
)
# The demonstration starts its workers by a command of its own.
_CHILDREN_TOO = (
    f"by_library = {_BY_LIBRARY!r}; from pgqueue_embed.worker import python_process;"
    " start = python_process.START.replace('import runpy', by_library + '\\nimport runpy');"
    " python_process.START = start; "
)
PROGRAMS = {"files alone": _USUAL, "library": _CHILDREN_TOO + _BY_LIBRARY + _USUAL}
COMMANDS = {
    "search": ("reports", "battery overheated while charging"),
    "create": ("reports", "--source-table", "reports", "--text-field", "body"),
    "work": ("--drain",),
    "demo": (),
}
_IN_THE_QUEUE = {"search", "work"}
_CORPORA = {"demo": "the language reference of Python"}

_VECTOR = """
insert into public.reports_vectors (
    fulltext_id, chunk_id, chunk_index, text_chunk, start_char, end_char, tokens, embedding
)
values (1, 1, 0, 'pump', 0, 4, 1, array_fill(0.1::real, array[384]))
"""


def measure(bench: Bench) -> Iterator[Measured]:
    """Run each command on a table of one row with the bundled model."""
    for command in COMMANDS:
        runs: dict[str, Callable[[], float]] = {
            name: partial(_run, bench, command, program) for name, program in PROGRAMS.items()
        }
        for each in runs.values():
            each()
        yield _measured(command, interleaved(bench.rounds, runs, on_run=bench.on_run))


def _measured(command: str, outcomes: dict[str, list[float]]) -> Measured:
    figures = [
        Figure(
            part=PART,
            name=f"pgembed {command}, its model opened by {name}",
            corpus=_CORPORA.get(command, "one record"),
            unit="s of processor time",
            values=seconds,
            note=f"{ratio(seconds, outcomes['library']):.2f} of the library's",
        )
        for name, seconds in outcomes.items()
    ]
    reaches = [
        Reach(
            name=f"processor time of a {command}",
            measured=figures[0].median,
            target=MOST_SECONDS[command],
            unit="s",
            at_most=True,
        )
        for _ in range(command in MOST_SECONDS)
    ]
    return Measured(figures=figures, reaches=reaches)


def _run(bench: Bench, command: str, program: str) -> float:
    """Return the processor seconds of the command, its children included."""
    conninfo = new_database(bench.server)
    try:
        with connect(conninfo) as connection:
            make_source(connection, ["pump"])
            if command in _IN_THE_QUEUE:
                enqueue(connection, _pipeline(connection), Selection())
            if command == "search":
                connection.execute(_VECTOR)
        words = [command, *COMMANDS[command], "--dsn", conninfo]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", program, *words], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    finally:
        drop_database(bench.server, conninfo)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _pipeline(connection: Connection) -> Pipeline:
    """Make the pipeline with the bundled model, which is not opened for it."""
    resolved = resolve_model(DEFAULT_MODEL)
    files = fingerprint(resolved.path)
    identity = ModelIdentity(
        name=resolved.name,
        revision=None,
        fingerprint=files.digest,
        files=files.files,
        dimensions=384,
    )
    return make_pipeline(connection, identity)
