"""Records the crash of a worker process, and tells when crashes speak against the machine."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pgqueue_embed.db.session import Connection
from pgqueue_embed.worker.registry import sign_off

# So many crashes that no record explains say that the machine is at fault. Two may be those of the
# last two records that wait.
UNEXPLAINED_CRASHES = 3

# So many records in a row that each kill the process by themselves say so, too: where no more wait
# than two processes claim, all are suspect after two crashes, and would be given up one by one.
DEADLY_RECORDS = 8

Key = tuple[int, str]


@dataclass(frozen=True, kw_only=True)
class Crash:
    """One crash of a worker process.

    `keys` are the source keys of its claims, as (pipeline id, key). `known_suspects` tells
    whether one of its items had a death before; `settled`, whether the process had settled a
    record before, otherwise than by giving it up.
    """

    keys: frozenset[Key]
    known_suspects: bool
    settled: bool


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
    return Crash(
        keys=frozenset((pipeline_id, key) for pipeline_id, keys, _ in rows for key in keys),
        known_suspects=any(suspect for _, _, suspect in rows),
        settled=_has_settled(connection, worker_id),
    )


def _has_settled(connection: Connection, worker_id: int) -> bool:
    # What it committed more than an hour ago may be summed up with that of others. What it has
    # said of itself is some seconds old.
    settled = connection.value(
        """
        select greatest(
            (select sum(records) from pgembed.batches where worker_id = %(worker_id)s),
            (select records from pgembed.workers where id = %(worker_id)s)
        ) > coalesce(
            (select sum(dead) from pgembed.batches where worker_id = %(worker_id)s and dead > 0), 0
        )
        """,
        {"worker_id": worker_id},
    )
    return bool(settled)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What speaks against the machine since a process of it settled a record.

    `unexplained` are the crashes that no record explains, each on other records; `deadly` the
    records that were suspect, and killed the process by themselves.
    """

    unexplained: tuple[Crash, ...] = ()
    deadly: frozenset[Key] = frozenset()

    def with_crash(self, latest: Crash) -> Evidence:
        """Return it with one more crash.

        One that hit nothing, or several suspects, says nothing of the machine.
        """
        known = Evidence() if latest.settled else self
        if latest.known_suspects:
            alone = latest.keys if len(latest.keys) == 1 else frozenset()
            return replace(known, deadly=known.deadly | alone)
        keys = {key for each in known.unexplained for key in each.keys}
        if not latest.keys or latest.keys & keys:
            return known
        return replace(known, unexplained=(*known.unexplained, latest))

    @property
    def summary(self) -> str | None:
        """What the process died on, where that says that the machine is at fault; else None."""
        if len(self.unexplained) >= UNEXPLAINED_CRASHES:
            return f"{len(self.unexplained)} different sets of records"
        if len(self.deadly) >= DEADLY_RECORDS:
            return f"{len(self.deadly)} single records, one after the other,"
        return None
