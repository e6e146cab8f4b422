"""Generations of a pipeline: the one that searches use, and the next one beside it.

Whatever the one settles while it has a next one is queued for that in the same commit. So with
nothing of this waiting, the next generation has seen each record that it knows at least as late as
the old one has. A claim that looks for the next one just before it is made has re-checked its
records before that, and all that the next one knows of them is newer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from psycopg import sql

from pgqueue_embed.connect import Connection
from pgqueue_embed.pipelines import load_pipelines
from pgqueue_embed.policy import MAX_ITEM_RECORDS
from pgqueue_embed.settings import Pipeline
from pgqueue_embed.spec import PipelineSpec
from pgqueue_embed.verdicts import Finding


def successor_of(connection: Connection, pipeline: Pipeline) -> Pipeline | None:
    """Return the next generation of `pipeline`, or None when there is none."""
    found = [each for each in load_pipelines(connection) if each.successor_of == pipeline.id]
    return found[0] if found else None


def is_next(connection: Connection, pipeline: Pipeline) -> bool:
    """Return whether `pipeline` is the next generation of another one that is still there."""
    return any(each.id == pipeline.successor_of for each in load_pipelines(connection))


def with_successors(connection: Connection, names: Sequence[str]) -> list[Pipeline]:
    """Return the pipelines called `names`, or all, and the next generations of them.

    Raises UsageError for an unknown name.
    """
    named = load_pipelines(connection, names)
    ids = {each.id for each in named}
    others = [each for each in load_pipelines(connection) if each.successor_of in ids]
    return [*named, *(each for each in others if each.id not in ids)]


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
        where pipeline_id = successor.id and records.key = listed.key
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


def spec_of(pipeline: Pipeline) -> PipelineSpec:
    """Return what one asks for to get a pipeline such as this one."""
    return PipelineSpec(
        **{each.name: getattr(pipeline, each.name) for each in fields(PipelineSpec)}
    )
