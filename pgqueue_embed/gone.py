"""Records that the source no longer has, found in the ledger and queued, to be forgotten.

A row that the pipeline's condition no longer lets in is such a record too.

Enqueue walks the source and cannot see what is not there; this walks the ledger, and the items in
flight, whose claims may be about to commit a record that has just gone.
"""

from __future__ import annotations

from psycopg import sql

from pgqueue_embed.connect import Connection
from pgqueue_embed.policy import MAX_ITEM_RECORDS
from pgqueue_embed.settings import Pipeline
from pgqueue_embed.source import source_names

# Queued ahead of bulk loading, as changes are; only those items can hold a gone key already, and
# one that is queued twice is forgotten once. An item in flight (see enqueue) does not count.
QUEUE_GONE = """
with flying as materialized (
    select work_id from pgembed.claimed_work
),
slice as materialized (
    select key
    from pgembed.records
    where pipeline_id = %(pipeline_id)s and key > %(last_key)s
    order by key
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
    select listed.key, (row_number() over (order by listed.key) - 1) / %(item_records)s as item
    from slice as listed
    where not exists (select from {source} as source where {source_key} = {listed_key})
        and not exists (select from pending where pending.key = listed.key)
),
queued as (
    insert into pgembed.work (pipeline_id, keys, records, priority, known)
    select %(pipeline_id)s, array_agg(key order by key), count(*), 0, true
    from gone
    group by item
    returning records
)
select
    (select count(*) from slice),
    (select coalesce(sum(records), 0) from queued),
    (select max(key) from slice)
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


def enqueue_gone(connection: Connection, pipeline: Pipeline, *, slice_records: int) -> int:
    """Queue the records of the ledger that the source has lost; returns how many were.

    Each slice of the ledger is its own commit; run again, it queues nothing twice.
    """
    names = source_names(pipeline)
    query = sql.SQL(QUEUE_GONE).format(**names)
    values = {
        "pipeline_id": pipeline.id,
        "slice_records": slice_records,
        "item_records": MAX_ITEM_RECORDS,
        "last_key": "",
    }
    connection.execute(sql.SQL(QUEUE_GONE_IN_FLIGHT).format(**names), values)
    queued = 0
    while True:
        seen, gone, values["last_key"] = connection.execute(query, values).fetchone() or (0, 0, "")
        queued += int(gone)
        if seen < slice_records:
            return queued
