"""Sweeps of the ledger, which a TRUNCATE leaves in the queue, for what has gone with it.

A user's TRUNCATE cannot queue the keys: it does not see them. It waits for whoever reads or writes
the table, the re-check of a claim before its commit included, so that all that was ever written
from the rows it removes is in the ledger once it has committed; and what a claim re-checks later is
found gone by itself.
"""

from __future__ import annotations

from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.claims import Claim
from pgqueue_embed.queue.deleted import check_doubt, find_deleted, queue_deleted, sweep_ledger
from pgqueue_embed.queue.lease import renew
from pgqueue_embed.queue.told import Told
from pgqueue_embed.queue.work_items import WorkItem

SWEPT_RECORDS = 50_000


def sweeps(claim: Claim) -> list[WorkItem]:
    """Return the claimed items that are sweeps."""
    return [item for item in claim.items if item.sweep_after is not None]


def sweep_slice(
    connection: Connection,
    side: Connection,
    pipeline: Pipeline,
    claim: Claim,
    *,
    slice_records: int = SWEPT_RECORDS,
) -> None:
    """Queue what a slice of the ledger has lost, and note how far it is.

    To be committed by the claim, which does not touch the source: it is read on `side`. Of several
    sweeps the one that has the farthest to go does for all, since the TRUNCATE behind each has been
    committed: a partitioned table makes one for each partition. A sweep that no TRUNCATE has left
    goes through the whole ledger before it queues anything. Raises PipelineFault when source or
    target cannot be read, or so much is gone that the source is to be doubted.
    """
    first, *others = sorted(sweeps(claim), key=lambda item: (item.sweep_after or "").encode())
    told = any(item.handling.allow_deletes for item in sweeps(claim))
    if not told and not first.sweep_after:
        swept = sweep_ledger(
            side,
            pipeline,
            Told(pipeline),
            slice_records=slice_records,
            on_slice=lambda: renew(connection),
        )
        check_doubt(side, pipeline, swept)
    found = find_deleted(side, pipeline, first.sweep_after or None, slice_records=slice_records)
    queue_deleted(connection, pipeline, found.keys)
    done = others if found.last_key is not None else [first, *others]
    connection.execute("delete from pgembed.work where id = any(%s)", ([each.id for each in done],))
    connection.execute(
        "update pgembed.work set sweep_after = %s, allow_deletes = %s where id = %s",
        (found.last_key, told, first.id),
    )
