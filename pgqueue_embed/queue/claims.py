"""Claiming work items: the row lock of an open transaction is the lease.

If the process, the machine or the network dies, the server ends the session and the items are
free again at once. No clock is compared and nothing reaps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from types import MappingProxyType
from typing import Any

import psycopg
from psycopg import sql

from pgqueue_embed.db.locks import CLAIM_LOCK
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import LeaseLost
from pgqueue_embed.queue.claim_cursor import ClaimCursor
from pgqueue_embed.queue.item_size import MAX_ITEM_RECORDS
from pgqueue_embed.queue.work_items import HANDLING, PRIORITIES, Handling, WorkItem


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Work items locked by the open transaction of one connection."""

    pipeline_id: int
    items: tuple[WorkItem, ...]
    xid: str

    @property
    def priority(self) -> int:
        """The priority of the items, which is the same for all."""
        return self.items[0].handling.priority

    @property
    def work_ids(self) -> list[int]:
        """The ids of the claimed items."""
        return [item.id for item in self.items]


# The locking queries are materialised: inlined, the planner may run them again and lock more rows
# than the limit. OF: a joined table would be locked too. Locked rows are another worker's. Places
# are compared as rows of the index work_claim_order, lest the planner walk along that of the ids.
# What was delayed lies in work_delayed, by the time when it is due: an index can be searched for
# the statement's time, and not for clock_timestamp(), which would be compared with each item.
# Nothing is claimed from while another session waits for the claims of a pipeline: see no_claims.
CLAIM = (
    sql.SQL("""
with at_once as materialized (
    select id, keys, delayed, compare_after, sweep_after, {handling}
    from pgembed.work
    where pipeline_id = %(pipeline_id)s
        and alone = %(alone)s
        and (priority, delayed, id) > (%(priority)s, false, %(after_id)s)
        and (priority, delayed, id) < (%(priority)s, true, 0)
        and (select pg_try_advisory_xact_lock_shared(%(claim_lock)s))
    order by priority, delayed, id
    limit %(limit)s
    for update of work skip locked
),
due as materialized (
    select id, keys, delayed, compare_after, sweep_after, {handling}
    from pgembed.work
    where pipeline_id = %(pipeline_id)s
        and alone = %(alone)s
        and priority = %(priority)s
        and delayed
        and available_at <= statement_timestamp()
        and id <> all (%(held_ids)s::bigint[])
        and not exists (select from at_once)
        and (select pg_try_advisory_xact_lock_shared(%(claim_lock)s))
    order by available_at, id
    limit %(limit)s
    for update of work skip locked
)
select claimed.*, unmarked.deaths, unmarked.reason, pg_current_xact_id()::text as xid
from (select * from at_once union all select * from due) as claimed
cross join lateral (
    select count(*) as deaths, max(reason) as reason from pgembed.attempts
    where attempts.work_id = claimed.id and attempts.died_at is not null
) as unmarked
order by claimed.id
""")
    .format(handling=sql.SQL(", ").join(map(sql.Identifier, HANDLING)))
    .as_string(None)
)


def claim_items(
    connection: Connection,
    pipeline_id: int,
    *,
    limit: int,
    alone: bool = False,
    cursor: ClaimCursor | None = None,
) -> Claim | None:
    """Lock up to `limit` work items of a pipeline, or return None when there are none to have.

    Of small items, as many as `limit` full ones have records; of those that run `alone`, one.
    Claims behind `cursor` first, then a little before it; what was delayed and is due comes behind
    the others of its priority. None does not mean that the pipeline is finished: other workers hold
    items.
    """
    place = {} if cursor is None or alone else cursor.start()
    values = {
        "pipeline_id": pipeline_id,
        "claim_lock": CLAIM_LOCK + pipeline_id,
        "alone": alone,
        "limit": 1 if alone else limit,
    }
    claim = _claim_behind(connection, values, place)
    if claim is None and place and cursor is not None:
        claim = _claim_behind(connection, values, cursor.nearby())
    if claim is not None and cursor is not None and not alone:
        in_order = [item.id for item in claim.items if not item.delayed]
        cursor.advance(claim.priority, in_order)
    return claim


def no_claims(connection: Connection, pipeline_id: int) -> None:
    """Wait for the claims of a pipeline, and let none begin until the open transaction ends."""
    connection.execute("select pg_advisory_xact_lock(%s)", (CLAIM_LOCK + pipeline_id,))


def _claim_behind(
    connection: Connection, values: dict[str, Any], place: dict[int, int]
) -> Claim | None:
    for priority in PRIORITIES:
        behind = {"priority": priority, "after_id": place.get(priority, 0), "held_ids": []}
        rows = connection.execute(CLAIM, {**values, **behind}).fetchall()
        if rows:
            items = [_item(row) for row in rows]
            if len(items) == values["limit"] and not values["alone"]:
                items += _claim_more(connection, {**values, **behind}, items)
            return Claim(pipeline_id=values["pipeline_id"], items=tuple(items), xid=rows[0][-1])
    return None


def _claim_more(
    connection: Connection, values: dict[str, Any], items: Sequence[WorkItem]
) -> list[WorkItem]:
    """Lock the items that come next, if those locked are small; too many of them are given back."""
    room = values["limit"] * MAX_ITEM_RECORDS - sum(item.weight for item in items)
    limit = min(room * len(items) // max(sum(item.weight for item in items), 1), room)
    after_id = max((item.id for item in items if not item.delayed), default=values["after_id"])
    behind = {"after_id": after_id, "held_ids": [item.id for item in items]}
    while limit > 0:
        with connection.transaction() as attempt:
            next_items = {**values, **behind, "limit": limit}
            more = [_item(row) for row in connection.execute(CLAIM, next_items)]
            limit = _number_that_fits(more, room)
            if limit == len(more):
                return more
            raise psycopg.Rollback(attempt)
    return []


def _number_that_fits(items: Sequence[WorkItem], room: int) -> int:
    weights = accumulate(item.weight for item in items)
    return sum(1 for weight in weights if weight <= room)


def _item(row: tuple[Any, ...]) -> WorkItem:
    id_, keys, delayed, compare_after, sweep_after, *values, unmarked, reason, _ = row
    handling = Handling(**dict(zip(HANDLING, values, strict=True)))
    if unmarked:
        handling = replace(handling, deaths=handling.deaths + unmarked, died_of=reason)
    return WorkItem(
        id=id_,
        keys=tuple(keys),
        handling=handling,
        unmarked_deaths=unmarked,
        compare_after=compare_after,
        sweep_after=sweep_after,
        delayed=delayed,
    )


# Not for a claim that the server has ended already: of a killed worker, this may be executed after
# another one has finished the item, and would be left behind as a death of nothing.
LOG = """
insert into pgembed.attempts (work_id, worker_id, claim_xid)
select work_id, %(worker_id)s, %(claim_xid)s::xid8
from unnest(%(work_ids)s::bigint[]) as claimed (work_id)
where pg_xact_status(%(claim_xid)s::xid8) = 'in progress'
returning id
"""


def log_attempts(side: Connection, claim: Claim, worker_id: int) -> list[int]:
    """Commit one attempt for each claimed item on a second connection and return their ids.

    Raises LeaseLost if the claim's transaction has ended.
    """
    values = {"work_ids": claim.work_ids, "worker_id": worker_id, "claim_xid": claim.xid}
    attempt_ids = [attempt_id for (attempt_id,) in side.execute(LOG, values)]
    if not attempt_ids:
        raise LeaseLost("the server took the claim back before it was logged")
    return attempt_ids


def delete_attempts(side: Connection, attempt_ids: Sequence[int]) -> None:
    """Delete attempts that ended without a commit and without a crash, so that none counts.

    Those that a claim's transaction still has locked, its connection cut in mid-write, are left.
    """
    side.execute(
        """
        delete from pgembed.attempts
        where id in (
            select id from pgembed.attempts where id = any(%s) for update skip locked
        )
        """,
        (list(attempt_ids),),
    )


def forget_lost_attempts(side: Connection, worker_id: int) -> None:
    """Delete the attempts of a living worker whose claims the server has rolled back.

    Left in place, they would pass for crashes once the worker process does crash.
    """
    side.execute(
        """
        delete from pgembed.attempts
        where worker_id = %s
            and died_at is null
            and claim_xid < pg_snapshot_xmax(pg_current_snapshot())
            and pg_xact_status(claim_xid) is distinct from 'in progress'
        """,
        (worker_id,),
    )


def finish_items(connection: Connection, claim: Claim) -> None:
    """Delete the claimed items and every attempt at them, in the claim's transaction."""
    connection.execute(
        """
        with finished as (
            delete from pgembed.work where id = any(%(work_ids)s)
        )
        delete from pgembed.attempts where work_id = any(%(work_ids)s)
        """,
        {"work_ids": claim.work_ids},
    )


def is_drained(side: Connection, pipeline_ids: Sequence[int]) -> bool:
    """Return whether nothing is pending in the active ones of the pipelines.

    Delayed retries count as pending, and so does what other workers hold.
    """
    pending = side.value(PENDING, (list(pipeline_ids),))
    return not pending


# From the end of the queue: what is done and not vacuumed yet lies at its front.
PENDING = """
select exists (
    select
    from pgembed.pipelines
    cross join (values (false), (true)) as kept (alone)
    where pipelines.id = any(%s)
        and pipelines.state = 'active'
        and (
            select work.id
            from pgembed.work
            where work.pipeline_id = pipelines.id and work.alone = kept.alone
            order by work.priority desc, work.delayed desc, work.id desc
            limit 1
        ) is not null
)
"""

# From the end of the queue, too, and not beyond the place of the last claims: all of a queue may
# be done and not vacuumed yet.
CLAIMABLE = """
select distinct pipelines.id
from unnest(%(pipeline_ids)s::bigint[], %(priorities)s::smallint[], %(after_ids)s::bigint[])
    as place (pipeline_id, priority, after_id)
join pgembed.pipelines on pipelines.id = place.pipeline_id
where pipelines.state = 'active'
    and coalesce(
        (
            select work.id
            from pgembed.work
            where work.pipeline_id = place.pipeline_id
                and work.alone = %(alone)s
                and (work.priority, work.delayed, work.id) > (place.priority, false, place.after_id)
                and (work.priority, work.delayed, work.id) < (place.priority, true, 0)
            order by work.priority desc, work.delayed desc, work.id desc
            limit 1
        ),
        (
            select work.id
            from pgembed.work
            where work.pipeline_id = place.pipeline_id
                and work.alone = %(alone)s
                and work.delayed
                and work.priority = place.priority
                and work.available_at <= statement_timestamp()
            order by work.available_at desc, work.id desc
            limit 1
        )
    ) is not null
order by pipelines.id
"""


def claimable_pipelines(
    side: Connection,
    pipeline_ids: Sequence[int],
    *,
    alone: bool,
    cursors: Mapping[int, ClaimCursor] = MappingProxyType({}),
) -> list[int]:
    """Return which active pipelines have an item to claim, locked ones included.

    Most of the time, only a little before the place of a pipeline's cursor is read.
    """
    places = {each: cursors[each].poll() if each in cursors else {} for each in pipeline_ids}
    wanted = [
        (pipeline_id, priority, place.get(priority, 0))
        for pipeline_id, place in places.items()
        for priority in PRIORITIES
    ]
    ids, priorities, after_ids = ([row[column] for row in wanted] for column in range(3))
    values = {"pipeline_ids": ids, "priorities": priorities, "after_ids": after_ids}
    rows = side.execute(CLAIMABLE, {**values, "alone": alone})
    return [pipeline_id for (pipeline_id,) in rows]
