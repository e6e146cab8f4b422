"""The cost of ten times the work, where it once was far more than ten times as much."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.cpu_time import server_seconds
from benchmarks.database import drop_database, new_database
from benchmarks.figures import Figure, Measured, Reach, interleaved, ratio
from benchmarks.memory_part import LIMIT_MEGABYTES, peak_of
from pgqueue_embed.db.session import connect
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.vector_search.index import plan
from pgqueue_embed.vector_search.index_build import build_index
from pgqueue_embed.vector_search.index_plan import IndexOptions
from tests.support.corpus import make_source
from tests.support.growing import CASES, Case, two_generations
from tests.support.pipelines import make_pipeline

PART = "growth"
TIMES = 10
MOST_GROWTH = 12.0
# Beside the index a switch compares the source with the ledger and waits for locks.
MOST_OF_A_SWITCH = 1.5


def measure(bench: Bench) -> Iterator[Measured]:
    """Measure each case at a size and at ten times that, in databases of their own."""
    for case in CASES:
        yield _growth(bench, case, bench.sizes.growth_records)
    yield _index_of_a_switch(bench, bench.sizes.growth_records)
    yield _memory(bench, bench.sizes.growth_characters)


def _growth(bench: Bench, case: Case, records: int) -> Measured:
    sizes = (records, TIMES * records)
    variants = {
        f"{case.name}, {size:,}": lambda size=size: _seconds(bench, case, size) for size in sizes
    }
    outcomes = interleaved(bench.rounds, variants, on_run=bench.on_run)
    small, large = outcomes.values()
    figures = [
        Figure(
            part=PART,
            name=case.name,
            corpus=f"{size:,} {case.unit}",
            unit="s of processor time",
            values=values,
        )
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
    """Return the processor time of a case, in the server and here."""
    conninfo = new_database(bench.server)
    try:
        with connect(conninfo) as connection:
            make_source(connection)
            pipeline = make_pipeline(connection)
            # What was analyzed when there were no dead letters yet stays as it is.
            connection.execute("alter table pgembed.records set (autovacuum_enabled = off)")
            case.fill(connection, pipeline, size)
            server = bench.server.status().pid
            before = time.process_time() + server_seconds(server)
            case.run(connection, pipeline)
            return time.process_time() + server_seconds(server) - before
    finally:
        drop_database(bench.server, conninfo)


def _index_of_a_switch(bench: Bench, records: int) -> Measured:
    """Compare the index that a switch builds with one of `pgembed index`, memory at its least."""
    variants = {
        "pgembed index": lambda: _index_seconds(bench, records, by_switch=False),
        "switch": lambda: _index_seconds(bench, records, by_switch=True),
    }
    outcomes = interleaved(bench.rounds, variants, on_run=bench.on_run)
    figures = [
        Figure(
            part=PART, name=f"{name}: HNSW", corpus=f"{records:,} records", unit="s", values=each
        )
        for name, each in outcomes.items()
    ]
    reach = Reach(
        name="a switch beside pgembed index, with the same index",
        measured=ratio(outcomes["switch"], outcomes["pgembed index"]),
        target=MOST_OF_A_SWITCH,
        at_most=True,
    )
    return Measured(figures=figures, reaches=[reach])


def _index_seconds(bench: Bench, records: int, *, by_switch: bool) -> float:
    conninfo = new_database(bench.server)
    try:
        with connect(conninfo) as connection:
            pipeline = two_generations(connection, records)
            connection.execute("set maintenance_work_mem = '1MB'")
            started = time.perf_counter()
            build_index(connection, pipeline, plan(connection, pipeline, IndexOptions()))
            if by_switch:
                started = time.perf_counter()
                switch(connection, pipeline)
            return time.perf_counter() - started
    finally:
        drop_database(bench.server, conninfo)


def _memory(bench: Bench, characters: int) -> Measured:
    """Compare the worker's memory on a text of emoji without a space with that on a long one."""
    sizes = (characters // TIMES, characters)
    variants = {f"{size:,} emoji": lambda size=size: _megabytes(bench, size) for size in sizes}
    outcomes = interleaved(bench.rounds, variants, on_run=bench.on_run)
    small, large = outcomes.values()
    figures = [
        Figure(part=PART, name="peak above rest", corpus=name, unit="MB", values=each)
        for name, each in outcomes.items()
    ]
    reaches = [
        Reach(
            name="memory for ten times the emoji",
            measured=ratio(large, small),
            target=MOST_GROWTH,
            at_most=True,
        ),
        Reach(
            name=f"memory for {characters:,} emoji",
            measured=max(large),
            target=LIMIT_MEGABYTES,
            unit="MB",
            at_most=True,
        ),
    ]
    return Measured(figures=figures, reaches=reaches)


def _megabytes(bench: Bench, characters: int) -> float:
    peak = peak_of(bench, ["🙂" * characters])
    return max(1.0, peak.highest - peak.at_rest)
