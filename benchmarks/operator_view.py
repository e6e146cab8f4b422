"""A history like that of a large pipeline in full work, for an operator to look at."""

from __future__ import annotations

import time

from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline

# A full ledger, of a first pass over everything; all of it waits to be embedded once more.
LEDGER = """
insert into pgembed.records
    (pipeline_id, key, state, generation, document_hash, chunks, embedded_at)
select %(pipeline_id)s, n::text, 'embedded', 1, sha256(int8send(n)), 2, clock_timestamp()
from generate_series(1, %(records)s) as n
"""

# The sum of the past, then one commit of each of 16 workers every 8 seconds of the last hour.
BATCHES = """
insert into pgembed.batches
    (pipeline_id, worker_id, committed_at, records, embedded, chunks, tokens, read_seconds,
    chunk_seconds, embed_seconds, write_seconds, rolled_up)
select
    %(pipeline_id)s, 1 + n %% 16, clock_timestamp() - n * interval '0.5 seconds', 256, 256, 512,
    50000, 0.1, 0.1, 7, 0.5, false
from generate_series(0, 7200) as n
union all
select %(pipeline_id)s, null, clock_timestamp() - interval '61 minutes', %(records)s, %(records)s,
    2 * %(records)s, 200 * %(records)s, 1, 1, 1, 1, true
"""

WORKERS = """
insert into pgembed.workers
    (host, pid, device, precision, model, version, concurrency, pipeline_ids)
select 'mac-' || n, 100 + n, 'mps', 'fp16', 'stub', '0', 2, array[%(pipeline_id)s]::bigint[]
from generate_series(1, 16) as n
"""


def fill_history(connection: Connection, pipeline: Pipeline, records: int) -> None:
    """Fill ledger, history and workers as after `records` records."""
    values = {"pipeline_id": pipeline.id, "records": records}
    for statement in (LEDGER, BATCHES, WORKERS):
        connection.execute(statement, values)
    connection.execute("vacuum analyze pgembed.records, pgembed.batches, pgembed.work")


def time_progress(connection: Connection) -> float:
    """Return the seconds that one look at pgembed.progress takes."""
    started = time.perf_counter()
    connection.execute("select * from pgembed.progress").fetchall()
    return time.perf_counter() - started
