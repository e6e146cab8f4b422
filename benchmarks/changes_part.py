"""The cost of many changes of single rows: idle polls, claims, and a sweep for deleted records."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext

from benchmarks.bench import Bench
from benchmarks.claim_times import hold_snapshot
from benchmarks.database import drop_database, new_database
from benchmarks.figures import Figure, Measured, interleaved
from pgqueue_embed.claim.size import MAX_CLAIM_BYTES, MAX_CLAIM_ITEMS, ClaimSize
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.claim_cursor import ClaimCursor
from pgqueue_embed.queue.claims import claim_items, claimable_pipelines, finish_items
from pgqueue_embed.queue.deleted import enqueue_deleted
from pgqueue_embed.queue.lease import claim_transaction
from tests.support.corpus import make_source, texts
from tests.support.pipelines import make_pipeline
from tests.support.working import drain, open_session

PART = "changes"
LOOK_SLICE_RECORDS = 50_000
POLLS = 20

QUEUE = """
insert into pgembed.work (pipeline_id, keys, records, priority, known)
select %(pipeline_id)s, array_agg(n::text), count(*), 0, true
from generate_series(1, %(records)s) as n
group by (n - 1) / %(item_records)s
order by 1
"""

LEDGER = """
insert into pgembed.records (pipeline_id, key, state, generation, chunks, document_hash)
select %s, n::text, 'embedded', 1, 1, sha256('') from generate_series(1, %s) as n
"""


def measure(bench: Bench) -> Iterator[Measured]:
    """Measure each in a database of its own."""
    yield _polls(bench, bench.sizes.changes * 15)
    yield _claims(bench, bench.sizes.changes)
    for records in bench.sizes.gone_records:
        yield _sweep(bench, records)


def _queue(connection: Connection, pipeline: Pipeline, records: int, item_records: int) -> None:
    connection.execute("truncate pgembed.work, pgembed.attempts")
    values = {"pipeline_id": pipeline.id, "records": records, "item_records": item_records}
    connection.execute(QUEUE, values)
    connection.execute("analyze pgembed.work")


def _polls(bench: Bench, records: int) -> Measured:
    """Time the poll of an idle loop once so many single changes are done, and not vacuumed."""
    conninfo = new_database(bench.server)
    with connect(conninfo) as connection:
        make_source(connection)
        pipeline = make_pipeline(connection)

        def run(*, held: bool) -> float:
            _queue(connection, pipeline, records, 1)
            cursor = ClaimCursor()
            with hold_snapshot(conninfo) if held else nullcontext():
                _finish_all(connection, pipeline, cursor)
                if not held:
                    connection.execute("vacuum pgembed.work")
                return _poll_milliseconds(connection, pipeline, cursor)

        variants = {
            "idle poll, vacuumed": lambda: run(held=False),
            "idle poll, old snapshot": lambda: run(held=True),
        }
        outcomes = interleaved(bench.rounds, variants, on_run=bench.on_run)
    drop_database(bench.server, conninfo)
    note = f"after {records:,} changes of one record each, mean of {POLLS}"
    return Measured(
        figures=[_figure(name, records, "ms", values, note) for name, values in outcomes.items()]
    )


def _finish_all(connection: Connection, pipeline: Pipeline, cursor: ClaimCursor) -> None:
    while True:
        with claim_transaction(connection, lease_seconds=60):
            claim = claim_items(connection, pipeline.id, limit=MAX_CLAIM_ITEMS, cursor=cursor)
            if claim is None:
                return
            finish_items(connection, claim)


def _poll_milliseconds(connection: Connection, pipeline: Pipeline, cursor: ClaimCursor) -> float:
    started = time.perf_counter()
    for _ in range(POLLS):
        cursors = {pipeline.id: cursor}
        claimable_pipelines(connection, [pipeline.id], alone=False, cursors=cursors)
    return 1000 * (time.perf_counter() - started) / POLLS


def _claims(bench: Bench, records: int) -> Measured:
    """Count and time the claims of changes in items of one record, and in full ones."""
    conninfo = new_database(bench.server)
    size = ClaimSize(items=MAX_CLAIM_ITEMS, limit_bytes=MAX_CLAIM_BYTES)
    with connect(conninfo) as connection, open_session(conninfo) as session:
        make_source(connection, texts(records))
        pipeline = make_pipeline(connection)

        def run(item_records: int) -> tuple[float, float]:
            connection.execute("truncate pgembed.records, public.reports_chunks")
            _queue(connection, pipeline, records, item_records)
            started = time.perf_counter()
            claims = len(drain(session, pipeline, size=size))
            return time.perf_counter() - started, float(claims)

        variants = {"single": lambda: run(1), "full": lambda: run(256)}
        outcomes = interleaved(bench.rounds, variants, on_run=bench.on_run)
    drop_database(bench.server, conninfo)
    figures = []
    for name, rounds in outcomes.items():
        for column, unit in enumerate(("s", "claims")):
            values = [each[column] for each in rounds]
            note = "a model that costs nothing"
            figures.append(_figure(f"changes in {name} items", records, unit, values, note))
    return Measured(figures=figures)


def _sweep(bench: Bench, records: int) -> Measured:
    """Time a sweep for deleted records, of which as many are queued as the ledger has."""
    conninfo = new_database(bench.server)
    with connect(conninfo) as connection:
        make_source(connection)
        pipeline = make_pipeline(connection)
        connection.execute(LEDGER, (pipeline.id, records))
        _queue(connection, pipeline, records, 256)
        connection.execute("vacuum analyze pgembed.records")
        seconds = []
        for _ in range(bench.rounds):
            started = time.perf_counter()
            queued = enqueue_deleted(connection, pipeline, slice_records=LOOK_SLICE_RECORDS)
            assert queued == 0, "it waits already"
            seconds.append(time.perf_counter() - started)
    drop_database(bench.server, conninfo)
    note = "all gone, all told by triggers, all waiting"
    return Measured(figures=[_figure("sweep for deleted records", records, "s", seconds, note)])


def _figure(name: str, records: int, unit: str, values: list[float], note: str) -> Figure:
    corpus = f"{records:,} records"
    return Figure(part=PART, name=name, corpus=corpus, unit=unit, values=values, note=note)
