"""Records that the source no longer has, found in the ledger and queued, to be forgotten.

A row that the pipeline's condition no longer lets in is such a record too.

Enqueue walks the source and cannot see what is not there; this walks the ledger, and the items in
flight, whose claims may be about to commit a record that has just gone.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from pgqueue_embed.claims import add_items
from pgqueue_embed.connect import Connection
from pgqueue_embed.faults import on_users_tables
from pgqueue_embed.policy import MAX_ITEM_RECORDS
from pgqueue_embed.settings import Pipeline
from pgqueue_embed.source import source_names

# Queued ahead of bulk loading, as changes are; only those items can hold a gone key already, and
# one that is queued twice is forgotten once. An item in flight (see enqueue) does not count.
FIND_GONE = """
with flying as materialized (
    select work_id from pgembed.claimed_work
),
slice as materialized (
    select key as ledger_key, coalesce(long_key, key) as key
    from pgembed.records
    where pipeline_id = %(pipeline_id)s and key > %(last_key)s
    order by ledger_key
    limit %(slice_records)s
),
pending as materialized (
    select unnest(keys) as key
    from pgembed.work
    where pipeline_id = %(pipeline_id)s
        and priority = 0
        and id not in (select work_id from flying)
),
gone as (
    select listed.key
    from slice as listed
    where not exists (select from {source} as source where {source_key} = {listed_key})
        and not exists (select from pending where pending.key = listed.key)
)
select
    array(select key from gone order by key),
    (select count(*) from slice) = %(slice_records)s,
    (select max(ledger_key) from slice)
"""

# Of the items in flight, those keys that the source does not have: their ledger rows may not be
# committed yet.
QUEUE_GONE_IN_FLIGHT = """
with flying as materialized (
    select work_id from pgembed.claimed_work
),
gone as (
    select distinct key
    from pgembed.work
    join flying on flying.work_id = work.id
    cross join unnest(keys) as listed (key)
    where pipeline_id = %(pipeline_id)s
        and not exists (select from {source} as source where {source_key} = {listed_key})
),
numbered as (
    select key, (row_number() over (order by key) - 1) / %(item_records)s as item from gone
)
insert into pgembed.work (pipeline_id, keys, records, priority, known)
select %(pipeline_id)s, array_agg(key order by key), count(*), 0, true
from numbered
group by item
"""

_LOOKING = "looking for what is gone from {}"


@dataclass(frozen=True, kw_only=True)
class GoneSlice:
    """What a slice of the ledger holds that the source does not, and does not wait already.

    `last_key` is where the next slice begins, None if this was the last one.
    """

    keys: list[str]
    last_key: str | None


def find_gone(
    connection: Connection, pipeline: Pipeline, after_key: str, *, slice_records: int
) -> GoneSlice:
    """Return what is gone of the `slice_records` records of the ledger behind `after_key`.

    Raises PipelineFault when the source cannot be read.
    """
    query = sql.SQL(FIND_GONE).format(**source_names(pipeline))
    values = {
        "pipeline_id": pipeline.id,
        "slice_records": slice_records,
        "last_key": after_key,
    }
    with on_users_tables(connection, _LOOKING.format(pipeline.source)):
        row = connection.execute(query, values).fetchone()
    keys, is_full, last_key = row or ([], False, None)
    return GoneSlice(keys=keys, last_key=last_key if is_full else None)


def queue_gone(connection: Connection, pipeline: Pipeline, keys: list[str]) -> None:
    """Queue records of the ledger that the source has lost, to be forgotten."""
    add_items(connection, pipeline.id, keys, priority=0, known=True)


def enqueue_gone(connection: Connection, pipeline: Pipeline, *, slice_records: int) -> int:
    """Queue the records of the ledger that the source has lost; returns how many were.

    Each slice of the ledger is its own commit; run again, it queues nothing twice.
    """
    query = sql.SQL(QUEUE_GONE_IN_FLIGHT).format(**source_names(pipeline))
    values = {"pipeline_id": pipeline.id, "item_records": MAX_ITEM_RECORDS}
    with on_users_tables(connection, _LOOKING.format(pipeline.source)):
        connection.execute(query, values)
    queued = 0
    after_key: str | None = ""
    while after_key is not None:
        found = find_gone(connection, pipeline, after_key, slice_records=slice_records)
        with connection.transaction():
            queue_gone(connection, pipeline, found.keys)
        queued += len(found.keys)
        after_key = found.last_key
    return queued
