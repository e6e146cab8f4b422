"""Small items as large ones: a claim may hold thousands of a single record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pgqueue_embed.db.session import Connection
from pgqueue_embed.queue.claims import CHANGES, WorkItem, add_items
from pgqueue_embed.queue.item_size import MAX_ITEM_RECORDS


def alike(items: Iterable[WorkItem]) -> list[list[WorkItem]]:
    """Return the items in groups, each of which may become one.

    Those of changes only: in an item of bulk loading the keys are in order.
    """
    groups: dict[object, list[WorkItem]] = {}
    for item in items:
        same = replace(item, id=0, keys=()) if item.priority == CHANGES else item
        groups.setdefault(same, []).append(item)
    return list(groups.values())


def add_like(
    connection: Connection,
    pipeline_id: int,
    item: WorkItem,
    keys: Sequence[str],
    *,
    alone: bool = False,
    deaths: int = 0,
    records_per_item: int = MAX_ITEM_RECORDS,
) -> None:
    """Insert items of `keys`, each but once, that want what `item` does."""
    add_items(
        connection,
        pipeline_id,
        list(dict.fromkeys(keys)),
        priority=item.priority,
        known=item.known,
        embed_again=item.embed_again,
        retrying=item.retrying,
        allow_deletes=item.allow_deletes,
        alone=alone or item.alone,
        deaths=deaths,
        died_of=item.died_of,
        records_per_item=records_per_item,
    )
