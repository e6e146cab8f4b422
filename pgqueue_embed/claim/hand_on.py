"""Queues for the next generation what a claim settled of the present one."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from pgqueue_embed.db.session import Connection
from pgqueue_embed.ledger.verdicts import Finding
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.item_size import MAX_ITEM_RECORDS

# Like bulk loading, which a switch waits for: in the order of the keys, and behind changes.
HAND_ON = """
with successor as materialized (
    select id from pgembed.pipelines where successor_of = %(pipeline_id)s for key share
),
settled as (
    select
        successor.id as pipeline_id,
        listed.key,
        listed.embed_again,
        listed.allow_deletes,
        ledger.state is not null as known
    from successor
    cross join unnest(%(keys)s::text[], %(embed_again)s::boolean[], %(allow_deletes)s::boolean[])
        as listed (key, embed_again, allow_deletes)
    left join lateral (
        select state
        from pgembed.records
        where pipeline_id = successor.id and records.key = pgembed.ledger_key(listed.key)
        limit 1
    ) as ledger on true
),
numbered as (
    select
        listed.*,
        row_number() over (
            partition by known, embed_again, allow_deletes order by {in_order}
        ) - 1 as position
    from settled as listed
)
insert into pgembed.work
    (pipeline_id, keys, records, priority, known, embed_again, allow_deletes)
select
    pipeline_id, array_agg(key order by position), count(*), 1, known, embed_again, allow_deletes
from numbered
group by pipeline_id, known, embed_again, allow_deletes, position / %(item_records)s
"""


def hand_on(connection: Connection, pipeline: Pipeline, settled: Sequence[Finding]) -> None:
    """Queue for the next generation, if there is one, what `pipeline` settles in this transaction.

    To be called after the re-check.
    """
    order = sql.SQL(", ").join(pipeline.key.values(sql.SQL("listed.key")))
    connection.execute(
        sql.SQL(HAND_ON).format(in_order=order),
        {
            "pipeline_id": pipeline.id,
            "keys": [finding.key for finding in settled],
            "embed_again": [finding.embed_again for finding in settled],
            "allow_deletes": [finding.allow_deletes for finding in settled],
            "item_records": MAX_ITEM_RECORDS,
        },
    )
