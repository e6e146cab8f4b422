"""The workers table: who works, for people to look at. No correctness depends on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from pgqueue_embed.connect import Connection
from pgqueue_embed.foreign_text import MOST_STORED_CHARACTERS, printable
from pgqueue_embed.version import VERSION

# Long enough for a supervisor that waits for its database to come back.
ORPHAN_AGE = "1 hour"


@dataclass(frozen=True, kw_only=True)
class WorkerIdentity:
    """What a worker process says about itself."""

    device: str
    precision: str
    model: str
    concurrency: int
    pipeline_ids: Sequence[int]


def register(connection: Connection, identity: WorkerIdentity) -> int:
    """Insert a row for this process and return its id."""
    (worker_id,) = connection.execute(
        """
        insert into pgembed.workers
            (host, pid, device, precision, model, version, concurrency, pipeline_ids)
        values (%s, %s, %s, %s, %s, %s, %s, %s)
        returning id
        """,
        _described(identity),
    ).fetchone() or (0,)
    return int(worker_id)


def register_again(connection: Connection, worker_id: int, identity: WorkerIdentity) -> None:
    """Insert the row of a process once more, which was taken for one that ended long ago."""
    connection.execute(
        """
        insert into pgembed.workers
            (id, host, pid, device, precision, model, version, concurrency, pipeline_ids)
        overriding system value
        values (%s, %s, %s, %s, %s, %s, %s, %s, %s)
        on conflict (id) do nothing
        """,
        (worker_id, *_described(identity)),
    )


def _described(identity: WorkerIdentity) -> tuple[Any, ...]:
    return (
        platform.node() or "unknown",
        os.getpid(),
        identity.device,
        identity.precision,
        identity.model,
        VERSION,
        identity.concurrency,
        list(identity.pipeline_ids),
    )


def heartbeat(
    connection: Connection,
    worker_id: int,
    *,
    state: str,
    memory_bytes: int,
    pipeline_ids: Sequence[int],
    unserved: Mapping[int, str],
) -> bool:
    """Say that the process lives, how much memory it takes, and what it cannot serve, and why.

    Returns whether its row is there.
    """
    served = [each for each in pipeline_ids if each not in unserved]
    updated = connection.execute(
        """
        update pgembed.workers
        set heartbeat_at = clock_timestamp(),
            state = %s,
            memory_bytes = %s,
            pipeline_ids = %s,
            unserved = %s
        where id = %s
        """,
        (state, memory_bytes, served, Jsonb(dict(unserved)), worker_id),
    )
    return updated.rowcount > 0


ANOTHER_ROLE_SERVES = """
select exists (
    select
    from pgembed.workers
    where id <> %(worker_id)s
        and role <> current_user
        and stopped_at is null
        and heartbeat_at > clock_timestamp() - interval '45 seconds'
        and %(pipeline_id)s = any (pipeline_ids)
        and not unserved ? %(pipeline_id)s::text
)
"""


def another_role_serves(connection: Connection, pipeline_id: int, worker_id: int) -> bool:
    """Return whether a worker of another role than this session's is at work on a pipeline.

    It may find no fault where worker `worker_id` has found one; if it does, it is asked in turn,
    and the last role agrees.
    """
    values = {"pipeline_id": pipeline_id, "worker_id": worker_id}
    (found,) = connection.execute(ANOTHER_ROLE_SERVES, values).fetchone() or (False,)
    return bool(found)


def sign_off(connection: Connection, worker_id: int, reason: str) -> None:
    """Say that the process has ended, and why; the first reason given stays."""
    connection.execute(
        """
        update pgembed.workers
        set stopped_at = clock_timestamp(), stop_reason = %s, state = 'stopped'
        where id = %s and stopped_at is null
        """,
        (printable(reason, MOST_STORED_CHARACTERS), worker_id),
    )


# Work that was queued for a generation in the very moment in which the next one replaced it.
INHERIT = """
update pgembed.work
set pipeline_id = successor.id
from pgembed.pipelines as successor
where successor.successor_of = work.pipeline_id
    and not exists (select from pgembed.pipelines where pipelines.id = work.pipeline_id)
"""


def inherit_work(connection: Connection) -> None:
    """Give work of generations that are gone to those that replaced them."""
    connection.execute(INHERIT)


# Of a pipeline that is gone for good: what a transaction that nobody waited for has left. Its id is
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
QUEUE_AND_LEDGER = ("work", "records", "batches")


def delete_abandoned(connection: Connection) -> None:
    """Delete rows of pipelines that are gone and have no successor, a portion of each table."""
    for table in QUEUE_AND_LEDGER:
        connection.execute(sql.SQL(ABANDONED).format(table=sql.Identifier("pgembed", table)))


def sweep(connection: Connection) -> int:
    """Delete attempts whose claim ended long ago without commit or crash, and old workers' rows.

    Returns how many attempts. Work of replaced generations goes to their successors, and what is of
    no pipeline any more goes.
    """
    inherit_work(connection)
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
    return orphans
