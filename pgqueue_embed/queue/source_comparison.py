"""Comparisons of a whole source with the ledger, carried out by workers, slice by slice.

Something has changed that no key tells of: a column has another type, a table has taken the
source's name or a partition was attached, or capture could not tell which rows a statement had
changed. What is left in the queue then is not keys but one item that every worker can take up. It
does what `pgembed enqueue` does, and the sweep that it becomes at the source's end finds what is
gone.
"""

from __future__ import annotations

from pgqueue_embed.db.session import Connection
from pgqueue_embed.log import get_logger
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.adoptions import read_adoption
from pgqueue_embed.queue.claims import Claim
from pgqueue_embed.queue.enqueue import Selection, Sizes, queue_slice
from pgqueue_embed.queue.item_size import MAX_ITEM_RECORDS
from pgqueue_embed.queue.work_items import WorkItem

# Short texts are hashed in a second or so, those of 60 kB within a lease.
COMPARED_RECORDS = 10_000

# An adoption is about to settle what a comparison would queue to be embedded.
ADOPTION_SECONDS = 60.0


def notice_changed_sources(connection: Connection) -> None:
    """Queue a comparison of each source with capture that has become another since the last one."""
    for (name,) in connection.execute("select pgembed.notice_changed_sources()"):
        get_logger().warning("source is another one, all of it is compared", pipeline=name)


def comparisons(claim: Claim) -> list[WorkItem]:
    """Return the claimed items that are comparisons of the source."""
    return [item for item in claim.items if item.compare_after is not None]


def compare_slice(
    connection: Connection,
    side: Connection,
    pipeline: Pipeline,
    claim: Claim,
    *,
    slice_records: int = COMPARED_RECORDS,
) -> None:
    """Queue what a slice of the source has that the ledger has not, and note how far it is.

    The cursor is committed by the claim, and what is queued on `side` before it: done again, a
    slice queues nothing twice. One that is to begin does for all others that are, since what they
    were queued for has been committed; one that has begun is ended first. Raises PipelineFault when
    source or target cannot be read.
    """
    waiting = comparisons(claim)
    begun = [item for item in waiting if item.compare_after]
    first, *others = begun[:1] or waiting
    adoption = read_adoption(side, pipeline)
    if adoption is not None and not adoption.is_finished:
        connection.execute(POSTPONE, (ADOPTION_SECONDS, [item.id for item in waiting]))
        return
    reached = _queue(side, pipeline, first.compare_after or None, slice_records)
    connection.execute(
        "delete from pgembed.work where id = any(%s)", ([item.id for item in others],)
    )
    connection.execute(ADVANCE, (reached, reached, first.id))


POSTPONE = """
update pgembed.work
set available_at = clock_timestamp() + make_interval(secs => %s)
where id = any(%s)
"""

# Behind its end, a sweep finds what the source has lost, without an announcement.
ADVANCE = """
update pgembed.work
set compare_after = %s,
    sweep_after = case when %s::text is null then '' end,
    allow_deletes = false
where id = %s
"""


def _queue(
    side: Connection, pipeline: Pipeline, last_key: str | None, slice_records: int
) -> str | None:
    """Queue what differs behind `last_key`; returns the slice's last key, or None at the end."""
    with side.transaction():
        sizes = Sizes(
            slice_records=slice_records,
            first_slice_records=slice_records,
            item_records=MAX_ITEM_RECORDS,
        )
        done = queue_slice(side, pipeline, Selection(), last_key, sizes)
    return None if done.ended else done.reached
