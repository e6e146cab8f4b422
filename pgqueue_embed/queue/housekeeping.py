"""Rows that crashed or replaced workers and pipelines leave behind."""

from __future__ import annotations

from psycopg import sql

from pgqueue_embed.db.session import Connection

# Long enough for a supervisor that waits for its database to come back.
ORPHAN_AGE = "1 hour"


# How far a sweep of the old ledger is says nothing of the new one.
MOVE_TO_SUCCESSORS = """
update pgembed.work
set pipeline_id = left_behind.successor_id,
    sweep_after = case when sweep_after is not null then '' end,
    compare_after = case when compare_after is not null then '' end
from (
    select work.id, successor.id as successor_id
    from pgembed.pipelines as successor
    join pgembed.work on work.pipeline_id = successor.successor_of
    where not exists (select from pgembed.pipelines where pipelines.id = successor.successor_of)
    for update of work {if_locked}
) as left_behind
where work.id = left_behind.id
"""


def move_work_to_successors(connection: Connection, *, wait: bool = True) -> None:
    """Give work of generations that are gone to those that replaced them.

    What another session has locked just now is left behind unless it is to `wait`.
    """
    if_locked = sql.SQL("" if wait else "skip locked")
    connection.execute(sql.SQL(MOVE_TO_SUCCESSORS).format(if_locked=if_locked))


# Of a pipeline that is gone for good: what a transaction left that was still open. Its id is
# found by a step through the index for each pipeline, not for each row.
ABANDONED = """
with recursive found (pipeline_id) as (
    (select pipeline_id from {table} order by pipeline_id limit 1)
    union all
    select (
        select listed.pipeline_id
        from {table} as listed
        where listed.pipeline_id > found.pipeline_id
        order by listed.pipeline_id
        limit 1
    )
    from found
    where found.pipeline_id is not null
)
delete from {table}
where ctid = any(array(
    select ctid
    from {table} as abandoned
    where abandoned.pipeline_id in (
        select pipeline_id
        from found
        where not exists (
            select
            from pgembed.pipelines
            where found.pipeline_id in (pipelines.id, pipelines.successor_of)
        )
    )
    limit 50000
))
"""

# Those that a worker's role may delete from; the cursors go with their pipeline.
QUEUE_AND_LEDGER = ("work", "records", "batches", "minutes")


def delete_abandoned(connection: Connection) -> None:
    """Delete rows of pipelines that are gone and have no successor, a portion of each table."""
    for table in QUEUE_AND_LEDGER:
        connection.execute(sql.SQL(ABANDONED).format(table=sql.Identifier("pgembed", table)))


def clean_up(connection: Connection) -> int:
    """Delete attempts whose claim ended long ago without commit or crash, and old workers' rows.

    Returns how many attempts. Work of replaced generations goes to their successors, and what is of
    no pipeline any more goes.
    """
    move_work_to_successors(connection)
    delete_abandoned(connection)
    orphans = connection.execute(
        f"""
        delete from pgembed.attempts
        where started_at < clock_timestamp() - interval '{ORPHAN_AGE}'
            and (died_at is null or not exists (
                select 1 from pgembed.work where work.id = attempts.work_id
            ))
            and case
                when claim_xid < pg_snapshot_xmax(pg_current_snapshot())
                then pg_xact_status(claim_xid) is distinct from 'in progress'
                else true
            end
        """  # noqa: S608 (a constant of this module)
    ).rowcount
    connection.execute(
        """
        delete from pgembed.workers
        where coalesce(stopped_at, heartbeat_at) < clock_timestamp() - interval '7 days'
        """
    )
    connection.execute(
        """
        delete from pgembed.event_log
        where happened_at < statement_timestamp() - interval '7 days'
        """
    )
    return orphans
