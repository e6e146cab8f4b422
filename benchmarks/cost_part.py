"""The processor time of a record, by `pgembed work` and by a script, each with its defaults.

Of two runs of unlike size the difference, so that starting does not count; on one thread, so that
it tells the work and not the wait. It can be measured on a machine that does other things as well.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.bench import Bench
from benchmarks.corpora import maude
from benchmarks.database import cloned, queued_database
from benchmarks.figures import Figure, Measured, interleaved, ratio
from pgqueue_embed.embedding import resolve_model
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL

PART = "cost"
# The first batches are compared with fp32, and are not of the difference.
FEW, MANY = 100, 400

_SCRIPT = "import sys; from benchmarks.naive import Script; Script(sys.argv[1]).run(sys.argv[2])"
_WORK = "from pgqueue_embed.__main__ import main; main()"


def measure(bench: Bench) -> Iterator[Measured]:
    """Measure both on reports."""
    documents = maude().sample(FEW + MANY).documents
    templates = [
        queued_database(bench.server, some, DEFAULT_MODEL)
        for some in (documents[:FEW], documents[FEW:])
    ]
    commands: dict[str, Callable[[str], list[str]]] = {
        "work": lambda conninfo: [_WORK, "work", "--drain", "--dsn", conninfo],
        "script": lambda conninfo: [_SCRIPT, str(resolve_model(DEFAULT_MODEL).path), conninfo],
    }
    runs = {
        name: partial(_milliseconds, bench, templates, command)
        for name, command in commands.items()
    }
    found = interleaved(bench.rounds, runs, on_run=bench.on_run)
    yield Measured(
        figures=[
            Figure(
                part=PART,
                name=f"{name}, processor time of a record",
                corpus=f"{MANY} reports of MAUDE less {FEW}",
                unit="ms",
                values=values,
                note=f"{ratio(found['script'], values):.2f} times as cheap as the script",
            )
            for name, values in found.items()
        ]
    )


def _milliseconds(bench: Bench, templates: list[str], command: Callable[[str], list[str]]) -> float:
    seconds = []
    for template in templates:
        with cloned(bench.server, template) as conninfo:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(
                [sys.executable, "-c", *command(conninfo)],
                check=True,
                capture_output=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return 1e3 * (seconds[1] - seconds[0]) / (MANY - FEW)
