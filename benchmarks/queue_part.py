"""Parts 6 and 8: enqueue, claims and progress with millions of records in the queue."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext

from benchmarks.bench import Bench
from benchmarks.claim_times import (
    delete_first_items,
    hold_snapshot,
    keep_queue,
    open_claims,
    refill,
    time_claims,
)
from benchmarks.database import drop_database, fake_identity, make_pipeline, new_database
from benchmarks.figures import Figure, Measured, Reach, interleaved, percentile
from benchmarks.operator_view import fill_history, time_progress
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import SLICE_RECORDS, Selection, enqueue

PART = "queue"
IN_FLIGHT = 8
ENQUEUE_SECONDS, QUEUE_MEGABYTES = 12.0, 60.0
CLAIM_MILLISECONDS, PROGRESS_MILLISECONDS = 5.0, 50.0

# Texts as long as a short sentence: enqueue reads keys only, and a ledger of nothing.
SOURCE = """
create table public.reports (id bigint primary key, body text not null);
insert into public.reports
select n, 'The device of report ' || n || ' was returned to its manufacturer.'
from generate_series(1, {records}) as n
"""

# What an enqueue has to do even if it compares nothing: keys in order, numbered, made into arrays.
ITEMS = """
with slice as materialized (
    select id from public.reports where id > %(after)s order by id limit %(slice_records)s
),
numbered as (
    select id, (row_number() over (order by id) - 1) / 256 as item from slice
)
select array_agg(id::text order by id) from numbered group by item order by item
"""


def measure(bench: Bench) -> Iterator[Measured]:
    """Measure each size of the queue in a database of its own."""
    for records in bench.sizes.queue_records:
        bench.say(f"a source of {records:,} records")
        conninfo = new_database(bench.server)
        with connect(conninfo) as connection:
            connection.execute(SOURCE.format(records=records))
            connection.execute("vacuum analyze public.reports")
            pipeline = make_pipeline(connection, fake_identity(384))
            yield _enqueue(bench, connection, pipeline, records)
            yield _claims(bench, conninfo, connection, pipeline, records)
            yield _progress(bench, conninfo, connection, pipeline, records)
        drop_database(bench.server, conninfo)


def _empty(connection: Connection) -> None:
    connection.execute("truncate pgembed.work, pgembed.scans, pgembed.attempts")


def _enqueue(bench: Bench, connection: Connection, pipeline: Pipeline, records: int) -> Measured:
    """Time an enqueue of everything from nothing, and weigh the queue on disk, indexes included."""
    sizes: list[float] = []

    def run() -> float:
        _empty(connection)
        started = time.perf_counter()
        queued = enqueue(connection, pipeline, Selection())
        seconds = time.perf_counter() - started
        assert queued == records, "everything is queued"
        sizes.append(_queue_bytes(connection) / 1e6)
        return seconds

    def make_items() -> float:
        started = time.perf_counter()
        for after in range(0, records, SLICE_RECORDS):
            values = {"after": after, "slice_records": SLICE_RECORDS}
            connection.execute(ITEMS, values).fetchall()
        return time.perf_counter() - started

    variants = {f"enqueue {records:,}": run, f"items of {records:,} alone": make_items}
    seconds, alone = interleaved(bench.rounds, variants, on_run=bench.on_run).values()
    keep_queue(connection)
    figures = [
        _figure("enqueue", records, "s", seconds, "keys found and queued, nothing compared"),
        _figure("queue on disk", records, "MB", sizes, "table and indexes"),
        _figure("items alone", records, "s", alone, "keys into arrays, not compared or queued"),
    ]
    share = records / 10_000_000
    reaches = [
        _reach("enqueue", records, figures[0].median, ENQUEUE_SECONDS * share, "s"),
        _reach("queue on disk", records, figures[1].median, QUEUE_MEGABYTES * share, "MB"),
    ]
    return Measured(figures=figures, reaches=reaches)


def _queue_bytes(connection: Connection) -> int:
    return int(connection.value("select pg_total_relation_size('pgembed.work')"))


def _claims(
    bench: Bench, conninfo: str, connection: Connection, pipeline: Pipeline, records: int
) -> Measured:
    """Time claims from BEGIN to the locked items, each finished and committed afterwards.

    With another session's old snapshot nothing of what is done can be vacuumed; the last variant
    starts when half of the queue has gone that way.
    """

    def variant(held: bool, deep: bool) -> Callable[[], list[float]]:
        def run() -> list[float]:
            refill(connection)
            with hold_snapshot(conninfo) if held else nullcontext():
                if deep:
                    delete_first_items(connection, 0.5)
                return time_claims(conninfo, pipeline, bench.sizes.claims)

        return run

    variants = {
        "claim": variant(held=False, deep=False),
        "claim, old snapshot": variant(held=True, deep=False),
        "claim, old snapshot, half done": variant(held=True, deep=True),
    }
    outcomes = interleaved(bench.rounds, variants, on_run=bench.on_run)
    measured = Measured()
    for name, rounds in outcomes.items():
        for percent in (50, 99):
            values = [1000 * percentile(seconds, percent) for seconds in rounds]
            note = f"{bench.sizes.claims} claims a round"
            figure = _figure(f"{name}, p{percent}", records, "ms", values, note)
            measured.figures.append(figure)
        if "snapshot" in name:
            p99 = measured.figures[-1].median
            measured.reaches.append(_reach(f"{name}, p99", records, p99, CLAIM_MILLISECONDS, "ms"))
    return measured


def _progress(
    bench: Bench, conninfo: str, connection: Connection, pipeline: Pipeline, records: int
) -> Measured:
    """Time ``select * from pgembed.progress`` with the whole queue waiting and a long history."""
    bench.say(f"filling the ledger with {records:,} records")
    refill(connection)
    fill_history(connection, pipeline, records)
    with open_claims(conninfo, pipeline, IN_FLIGHT):
        values = [1000 * time_progress(connection) for _ in range(max(bench.rounds, 5))]
    note = f"ledger full, an hour of commits by 16 workers, {IN_FLIGHT} claims in flight"
    figure = _figure("pgembed.progress", records, "ms", values, note)
    reach = _reach("pgembed.progress", records, figure.median, PROGRESS_MILLISECONDS, "ms")
    return Measured(figures=[figure], reaches=[reach])


def _figure(name: str, records: int, unit: str, values: list[float], note: str) -> Figure:
    corpus = f"{records:,} records"
    return Figure(part=PART, name=name, corpus=corpus, unit=unit, values=values, note=note)


def _reach(name: str, records: int, measured: float, target: float, unit: str) -> Reach:
    return Reach(
        name=f"{name} ({records:,} records)",
        measured=measured,
        target=target,
        unit=unit,
        at_most=True,
    )
