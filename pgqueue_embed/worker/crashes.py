"""Records the crash of a worker process, and tells which crashes no record explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pgqueue_embed.db.session import Connection
from pgqueue_embed.worker.registry import sign_off

# So many crashes that no record explains say that the machine is at fault. Two may be those of the
# last two records that wait.
UNEXPLAINED_CRASHES = 3


@dataclass(frozen=True, kw_only=True)
class Crash:
    """One crash of a worker process.

    `keys` are the source keys of its claims, as (pipeline id, key). `known_suspects` tells
    whether one of its items had a death before; `committed`, whether the process had committed
    anything.
    """

    keys: frozenset[tuple[int, str]]
    known_suspects: bool
    committed: bool


def record_crash(connection: Connection, worker_id: int, reason: str) -> Crash:
    """Mark the attempts of a crashed worker process as died in, and return what it held."""
    with connection.transaction():
        connection.execute(
            """
            update pgembed.attempts set died_at = clock_timestamp()
            where worker_id = %s and died_at is null
            """,
            (worker_id,),
        )
        # An item that others have finished or split before its death was known is beyond blame.
        connection.execute(
            """
            delete from pgembed.attempts
            where worker_id = %s
                and not exists (select 1 from pgembed.work where work.id = attempts.work_id)
            """,
            (worker_id,),
        )
        sign_off(connection, worker_id, reason)
        return _read_crash(connection, worker_id)


def _read_crash(connection: Connection, worker_id: int) -> Crash:
    rows = connection.execute(
        """
        select
            work.pipeline_id,
            work.keys,
            work.deaths > 0 or exists (
                select 1
                from pgembed.attempts as others
                where others.work_id = work.id
                    and others.worker_id <> %s
                    and others.died_at is not null
            )
        from pgembed.attempts
        join pgembed.work on work.id = attempts.work_id
        where attempts.worker_id = %s
        """,
        (worker_id, worker_id),
    ).fetchall()
    committed = connection.value(
        "select exists (select 1 from pgembed.batches where worker_id = %s)", (worker_id,)
    )
    return Crash(
        keys=frozenset((pipeline_id, key) for pipeline_id, keys, _ in rows for key in keys),
        known_suspects=any(suspect for _, _, suspect in rows),
        committed=bool(committed),
    )


def unexplained(before: Sequence[Crash], latest: Crash) -> list[Crash]:
    """Return the crashes since the last commit that no record explains, each on other records.

    `before` are those without the `latest`. One that hit a suspect, or nothing, says nothing of the
    machine.
    """
    known = [] if latest.committed else list(before)
    keys = {key for each in known for key in each.keys}
    if latest.known_suspects or not latest.keys or latest.keys & keys:
        return known
    return [*known, latest]
