"""How much processor time one `pgembed search` takes, from the shell to its answer.

Against the same command with its query encoded by the library, as for models that the light encoder
leaves to it. Nothing is kept from one search to the next.
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
from pgqueue_embed.db.session import connect
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL
from tests.support.corpus import make_source

PART = "start"
MOST_SECONDS = 0.6

_USUAL = "from pgqueue_embed.__main__ import main; main()"
_BY_LIBRARY = (
    "from pgqueue_embed.vector_search import query_vector;"
    " query_vector.open_light_encoder = lambda *_: None; "
)
PROGRAMS = {"light encoder": _USUAL, "library": _BY_LIBRARY + _USUAL}
_VECTOR = """
insert into public.reports_vectors (
    fulltext_id, chunk_id, chunk_index, text_chunk, start_char, end_char, tokens, embedding
)
values (1, 1, 0, 'pump', 0, 4, 1, array_fill(0.1::real, array[384]))
"""


def measure(bench: Bench) -> Iterator[Measured]:
    """Search a table of one row with the bundled model."""
    conninfo = new_database(bench.server)
    try:
        with connect(conninfo) as connection:
            make_source(connection, ["pump"])
            make_pipeline(connection, DEFAULT_MODEL)
            connection.execute(_VECTOR)
        searches: dict[str, Callable[[], float]] = {
            name: partial(_search, program, conninfo) for name, program in PROGRAMS.items()
        }
        for each in searches.values():
            each()
        outcomes = interleaved(bench.rounds, searches, on_run=bench.on_run)
    finally:
        drop_database(bench.server, conninfo)
    yield _measured(outcomes)


def _measured(outcomes: dict[str, list[float]]) -> Measured:
    figures = [
        Figure(
            part=PART,
            name=f"pgembed search, by the {name}",
            corpus="one query",
            unit="s of processor time",
            values=seconds,
            note=f"{ratio(seconds, outcomes['library']):.2f} of the library's",
        )
        for name, seconds in outcomes.items()
    ]
    reach = Reach(
        name="processor time of a search",
        measured=figures[0].median,
        target=MOST_SECONDS,
        unit="s",
        at_most=True,
    )
    return Measured(figures=figures, reaches=[reach])


def _search(program: str, conninfo: str) -> float:
    """Return the processor seconds of the command, its children included."""
    words = ["search", "reports", "battery overheated while charging", "--dsn", conninfo]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program, *words], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
