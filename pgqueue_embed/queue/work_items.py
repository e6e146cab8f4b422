"""Work items, each a row of pgembed.work: what is in one, and how they are queued."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field, fields, replace

from psycopg import sql

from pgqueue_embed.db.session import Connection
from pgqueue_embed.queue.item_size import MAX_ITEM_RECORDS

# Changes of the source before bulk loading and retries.
CHANGES, BULK = 0, 1
PRIORITIES = (CHANGES, BULK)


@dataclass(frozen=True, kw_only=True)
class Handling:
    """How a claim is to handle the records of an item; its fields are columns of pgembed.work.

    `known` says that the ledger has them, `embed_again` that their present vectors do not count,
    `retrying` that they failed before. Only where `allow_deletes` is set, a record that cannot be
    found has been deleted. An item that is `alone` runs with no other claim in its process. It has
    been held at `deaths` crashes, or, with what happened in `died_of`, ran out of time as often.
    """

    priority: int = BULK
    known: bool = False
    embed_again: bool = False
    retrying: bool = False
    allow_deletes: bool = False
    alone: bool = False
    deaths: int = 0
    died_of: str | None = None


HANDLING = tuple(each.name for each in fields(Handling))


@dataclass(frozen=True, kw_only=True)
class WorkItem:
    """One claimed row of pgembed.work; the deaths of its `handling` count the unmarked ones too.

    Instead of keys it may have `compare_after`, the key behind which to compare the source with the
    ledger, or `sweep_after`, the key behind which to sweep the ledger for records that the source
    has lost. One that was `delayed` was claimed in the order in which such items were due.
    """

    id: int
    keys: tuple[str, ...]
    handling: Handling
    unmarked_deaths: int = 0
    compare_after: str | None = None
    sweep_after: str | None = None
    delayed: bool = field(default=False, compare=False)

    @property
    def weight(self) -> int:
        """How many records it counts for in a claim.

        Items of bulk loading count as full ones: enqueue has sized them to be shared.
        """
        return len(self.keys) if self.handling.priority == CHANGES else MAX_ITEM_RECORDS


def alike(items: Iterable[WorkItem]) -> list[list[WorkItem]]:
    """Return the items in groups, each of which may become one.

    Those of changes only: in an item of bulk loading the keys are in order. A claim may hold
    thousands of changes of a single record.
    """
    groups: dict[object, list[WorkItem]] = {}
    for item in items:
        is_change = item.handling.priority == CHANGES
        groups.setdefault(replace(item, id=0, keys=()) if is_change else item, []).append(item)
    return list(groups.values())


ADD = sql.SQL(
    """
    insert into pgembed.work (pipeline_id, keys, records, {handling}, available_at)
    values (%s, %s, %s, {values}, clock_timestamp() + make_interval(secs => %s))
    """
).format(
    handling=sql.SQL(", ").join(map(sql.Identifier, HANDLING)),
    values=sql.SQL(", ").join([sql.Placeholder()] * len(HANDLING)),
)


def add_items(
    connection: Connection,
    pipeline_id: int,
    keys: Sequence[str],
    handling: Handling = Handling(),
    *,
    delay_seconds: float = 0.0,
    records_per_item: int = MAX_ITEM_RECORDS,
) -> None:
    """Insert work items of `records_per_item` keys each, to be claimed after `delay_seconds`.

    A key that occurs twice in `keys` is queued once.
    """
    distinct = list(dict.fromkeys(keys))
    for start in range(0, len(distinct), records_per_item):
        part = distinct[start : start + records_per_item]
        values = (pipeline_id, part, len(part), *astuple(handling), delay_seconds)
        connection.execute(ADD, values)
