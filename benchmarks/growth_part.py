"""What ten times the work costs, where it once cost far more than ten times as much."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.database import drop_database, new_database
from benchmarks.figures import Figure, Measured, Reach, interleaved, ratio
from pgqueue_embed.db.session import connect
from tests.support.corpus import make_source
from tests.support.growing import CASES, Case
from tests.support.pipelines import make_pipeline

PART = "growth"
TIMES = 10
MOST_GROWTH = 12.0


def measure(bench: Bench) -> Iterator[Measured]:
    """Time each case at a size and at ten times that, in databases of their own."""
    for case in CASES:
        yield _growth(bench, case, bench.sizes.growth_records)


def _growth(bench: Bench, case: Case, records: int) -> Measured:
    sizes = (records, TIMES * records)
    variants = {
        f"{case.name}, {size:,}": lambda size=size: _seconds(bench, case, size) for size in sizes
    }
    outcomes = interleaved(bench.rounds, variants, on_run=bench.on_run)
    small, large = outcomes.values()
    figures = [
        Figure(part=PART, name=case.name, corpus=f"{size:,} {case.unit}", unit="s", values=values)
        for size, values in zip(sizes, (small, large), strict=True)
    ]
    reach = Reach(
        name=f"{case.name}: ten times the work",
        measured=ratio(large, small),
        target=MOST_GROWTH,
        at_most=True,
    )
    return Measured(figures=figures, reaches=[reach])


def _seconds(bench: Bench, case: Case, size: int) -> float:
    conninfo = new_database(bench.server)
    try:
        with connect(conninfo) as connection:
            make_source(connection)
            pipeline = make_pipeline(connection)
            # What was analyzed when there were no dead letters yet stays as it is.
            connection.execute("alter table pgembed.records set (autovacuum_enabled = off)")
            case.fill(connection, pipeline, size)
            started = time.perf_counter()
            case.run(connection, pipeline)
            return time.perf_counter() - started
    finally:
        drop_database(bench.server, conninfo)
