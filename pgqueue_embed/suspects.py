"""Work items that a worker process died over: set apart, narrowed down, given up on.

A process that dies held several claims, and only one of them is to blame. Its items are marked
``alone`` and run with no other claim in the process; an item that kills a process alone is split,
until a single record is left to blame.
"""

from __future__ import annotations

from pgqueue_embed.claims import Claim, WorkItem, add_items
from pgqueue_embed.connect import Connection
from pgqueue_embed.policy import FATAL_DEATHS, split_size


def suspects(claim: Claim) -> list[WorkItem]:
    """Return the claimed items with deaths that are not marked yet."""
    return [item for item in claim.items if item.unmarked_deaths]


def set_apart(connection: Connection, claim: Claim) -> None:
    """Mark or split the suspects of `claim`; to be committed with nothing else done."""
    for item in suspects(claim):
        if item.alone and len(item.keys) > 1:
            _split(connection, claim.pipeline_id, item)
        else:
            # Where others ran beside it, it is one death short of the sentence: as in _split.
            deaths = item.deaths if item.alone else min(item.deaths, FATAL_DEATHS - 1)
            connection.execute(
                "update pgembed.work set alone = true, deaths = %s where id = %s",
                (deaths, item.id),
            )
        connection.execute(
            "delete from pgembed.attempts where work_id = %s and died_at is not null", (item.id,)
        )


def death_sentence(item: WorkItem) -> str | None:
    """Return why the one record of `item` is given up on unread, or None if it is not."""
    if item.alone and len(item.keys) == 1 and item.deaths >= FATAL_DEATHS:
        return f"the worker process died {item.deaths} times on this record"
    return None


def _split(connection: Connection, pipeline_id: int, item: WorkItem) -> None:
    add_items(
        connection,
        pipeline_id,
        item.keys,
        priority=item.priority,
        known=item.known,
        embed_again=item.embed_again,
        retrying=item.retrying,
        allow_deletes=item.allow_deletes,
        alone=True,
        # One death short of the sentence: a part must kill once more, by itself, to get it.
        deaths=min(item.deaths, FATAL_DEATHS - 1),
        records_per_item=split_size(len(item.keys)),
    )
    connection.execute("delete from pgembed.work where id = %s", (item.id,))
