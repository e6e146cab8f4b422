"""Work items that a worker process died over: set apart, narrowed down, given up on.

A process that dies held several claims, and only one of them is to blame. Its items are marked
``alone`` and run with no other claim in the process; an item that kills a process alone is split,
until a single record is left to blame.
"""

from __future__ import annotations

import math
from dataclasses import replace

from pgqueue_embed.db.session import Connection
from pgqueue_embed.queue.claims import Claim
from pgqueue_embed.queue.item_size import MAX_ITEM_RECORDS
from pgqueue_embed.queue.work_items import WorkItem, add_items, alike


def suspects(claim: Claim) -> list[WorkItem]:
    """Return the claimed items with deaths that are not marked yet."""
    return [item for item in claim.items if item.unmarked_deaths]


def isolate(connection: Connection, claim: Claim) -> None:
    """Mark or split the suspects of `claim`; to be committed with nothing else done."""
    marked = suspects(claim)
    for item in marked:
        if item.handling.alone:
            _narrow_down(connection, claim.pipeline_id, item)
    for likes in alike(item for item in marked if not item.handling.alone):
        _mark(connection, claim.pipeline_id, likes)
    connection.execute(
        "delete from pgembed.attempts where work_id = any(%s) and died_at is not null",
        ([item.id for item in marked],),
    )


MARK = "update pgembed.work set alone = true, deaths = %s, died_of = %s where id = %s"


def _narrow_down(connection: Connection, pipeline_id: int, item: WorkItem) -> None:
    if len(item.keys) > 1:
        size = split_size(len(item.keys))
        _replace(connection, pipeline_id, [item], records_per_item=size)
    else:
        connection.execute(MARK, (item.handling.deaths, item.handling.died_of, item.id))


def _mark(connection: Connection, pipeline_id: int, likes: list[WorkItem]) -> None:
    """Mark items, one or several that are alike: small ones become large ones.

    A claim may hold thousands of them, and each would have to run with no other in its process.
    """
    if len(likes) > 1:
        _replace(connection, pipeline_id, likes)
        return
    (item,) = likes
    connection.execute(
        MARK, (min(item.handling.deaths, FATAL_DEATHS - 1), item.handling.died_of, item.id)
    )


def give_up_reason(item: WorkItem) -> str | None:
    """Return why the one record of `item` is given up on unread, or None if it is not."""
    handling = item.handling
    if not (handling.alone and len(item.keys) == 1 and handling.deaths >= FATAL_DEATHS):
        return None
    if handling.died_of is not None:
        times = f"{handling.deaths} times that it was not done in time"
        return f"given up after {times}: {handling.died_of}"
    return f"the worker process died {handling.deaths} times on this record"


def _replace(
    connection: Connection,
    pipeline_id: int,
    items: list[WorkItem],
    *,
    records_per_item: int = MAX_ITEM_RECORDS,
) -> None:
    # One death short of the last, as where others ran beside it: a part must kill once more, by
    # itself.
    deaths = min(items[0].handling.deaths, FATAL_DEATHS - 1)
    add_items(
        connection,
        pipeline_id,
        [key for item in items for key in item.keys],
        replace(items[0].handling, alone=True, deaths=deaths),
        records_per_item=records_per_item,
    )
    connection.execute(
        "delete from pgembed.work where id = any(%s)", ([item.id for item in items],)
    )


SPLIT_PARTS = 16
FATAL_DEATHS = 3


def split_size(records: int) -> int:
    """Return how many records each part holds when a suspect item is split into up to 16."""
    return math.ceil(records / SPLIT_PARTS)
