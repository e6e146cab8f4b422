"""Records that the source no longer has, found in the ledger and queued, to be forgotten.

A row that the pipeline's condition no longer lets in is such a record too.

Enqueue walks the source and cannot see what is not there; this walks the ledger, and the items in
flight, whose claims may be about to commit a record that has just gone. A source that has lost much
without an announcement may not be the source any more, or not be readable as a whole: nothing is
queued then, the pipeline is paused, and a person is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from psycopg import sql

from pgqueue_embed.db.faults import on_users_tables
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import PipelineFault
from pgqueue_embed.pipeline.catalog import keep_pipeline, pause_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.told import Told
from pgqueue_embed.queue.work_items import CHANGES, Handling, add_items
from pgqueue_embed.source.read import source_names
from pgqueue_embed.source.trust import trusting
from pgqueue_embed.untrusted.shell import command

# More than both, gone without a word, is asked about.
UNASKED_RECORDS = 1_000
UNASKED_SHARE = 0.1

# In the reason of a pipeline that is paused for it, by which it is resumed.
UNTOLD = "and no TRUNCATE was seen"

FIND_DELETED = """
with slice as materialized (
    select key as ledger_key, coalesce(long_key, key) as key
    from pgembed.records
    where pipeline_id = %(pipeline_id)s {behind}
    order by ledger_key
    limit %(slice_records)s
),
gone as (
    select listed.key
    from slice as listed
    where not exists (select from {source} as source where {source_key} = {listed_key})
)
select
    array(select key from gone order by key),
    (select count(*) from slice),
    (select max(ledger_key) from slice)
"""

# Of the items in flight, those keys that the source does not have: their ledger rows may not be
# committed yet.
GONE_IN_FLIGHT = """
with flying as materialized (
    select work_id from pgembed.claimed_work
)
select array(
    select distinct key
    from pgembed.work
    join flying on flying.work_id = work.id
    cross join unnest(keys) as listed (key)
    where pipeline_id = %(pipeline_id)s
        and not exists (select from {source} as source where {source_key} = {listed_key})
    order by key
)
"""

_SWEEPING = "looking for what is gone from {}"


@dataclass(frozen=True, kw_only=True)
class DeletedSlice:
    """What a slice of the ledger holds that the source does not.

    `last_key` is where the next slice begins, None if this was the last one.
    """

    keys: list[str]
    records: int
    last_key: str | None


@dataclass(kw_only=True)
class LedgerSweep:
    """What a sweep of the whole ledger has found: records, the unannounced deletions.

    `places` are the keys behind which slices begin that have something to be queued.
    """

    records: int = 0
    untold: int = 0
    places: list[str | None] = field(default_factory=list)

    @property
    def is_doubtful(self) -> bool:
        """Whether so much is gone that the source is to be doubted."""
        return is_doubtful(self.untold, self.records)


def is_doubtful(gone: int, records: int) -> bool:
    """Return whether so many of all records are gone that the source is to be doubted."""
    return gone > max(UNASKED_RECORDS, UNASKED_SHARE * records)


def find_deleted(
    connection: Connection, pipeline: Pipeline, after_key: str | None, *, slice_records: int
) -> DeletedSlice:
    """Return what is gone of `slice_records` records of the ledger, behind `after_key` or first.

    A key may be the empty text. Raises PipelineFault when the source cannot be read.
    """
    behind = sql.SQL("" if after_key is None else "and key > %(last_key)s")
    query = sql.SQL(FIND_DELETED).format(**source_names(pipeline), behind=behind)
    values = {
        "pipeline_id": pipeline.id,
        "slice_records": slice_records,
        "last_key": after_key,
    }
    doing = _SWEEPING.format(pipeline.source)
    with trusting(connection, pipeline.spec), on_users_tables(connection, doing):
        row = connection.execute(query, values).fetchone()
    keys, records, last_key = row or ([], 0, None)
    is_full = records == slice_records
    return DeletedSlice(keys=keys, records=records, last_key=last_key if is_full else None)


def queue_deleted(connection: Connection, pipeline: Pipeline, keys: list[str]) -> None:
    """Queue records of the ledger that the source has lost, to be forgotten."""
    handling = Handling(priority=CHANGES, known=True, allow_deletes=True)
    add_items(connection, pipeline.id, keys, handling)


def enqueue_deleted(
    connection: Connection, pipeline: Pipeline, *, slice_records: int, allow_deletes: bool = False
) -> int:
    """Queue the records of the ledger that the source has lost; returns how many were.

    Each slice of the ledger is its own commit; run again, it queues nothing twice that waits.
    Without `allow_deletes`, pauses the pipeline and raises PipelineFault if too much is gone: see
    `LedgerSweep.is_doubtful`.
    """
    in_flight = _deleted_in_flight(connection, pipeline)
    told = Told(pipeline)
    swept = sweep_ledger(connection, pipeline, told, slice_records=slice_records)
    if swept.is_doubtful and not allow_deletes:
        # Announcements made meanwhile were not known before.
        told = Told(pipeline)
        swept = sweep_ledger(connection, pipeline, told, slice_records=slice_records)
        check_doubt(connection, pipeline, swept)
    with connection.transaction():
        keep_pipeline(connection, pipeline)
        queue_deleted(connection, pipeline, in_flight)
    return sum(
        _queue_slice(connection, pipeline, told, place, slice_records) for place in swept.places
    )


def sweep_ledger(
    connection: Connection,
    pipeline: Pipeline,
    told: Told,
    *,
    slice_records: int,
    on_slice: Callable[[], None] = lambda: None,
) -> LedgerSweep:
    """Go through the ledger for what the source has lost, and queue nothing."""
    swept = LedgerSweep()
    after_key: str | None = None
    ended = False
    while not ended:
        found = find_deleted(connection, pipeline, after_key, slice_records=slice_records)
        swept.records += found.records
        keys = told.without_waiting(connection, found.keys) if found.keys else []
        if keys:
            swept.places.append(after_key)
            swept.untold += told.count_untold(connection, keys)
        after_key, ended = found.last_key, found.last_key is None
        on_slice()
    return swept


def check_doubt(connection: Connection, pipeline: Pipeline, swept: LedgerSweep) -> None:
    """Pause the pipeline and raise PipelineFault, which asks a person, if `swept` is doubtful.

    Not while a TRUNCATE has left a sweep that waits.
    """
    if not swept.is_doubtful or _truncate_was_seen(connection, pipeline):
        return
    reason = (
        f"{swept.untold:,} of {swept.records:,} records are gone from {pipeline.source}, {UNTOLD};"
        f" were they deleted, run: {command('enqueue', pipeline.name, '--allow-deletes')};"
        f" if not, mend the source and run: {command('resume', pipeline.name)}"
    )
    if pipeline.state == "active":
        pause_pipeline(connection, pipeline, reason)
    raise PipelineFault(reason)


def _truncate_was_seen(connection: Connection, pipeline: Pipeline) -> bool:
    query = """
    select exists (
        select
        from pgembed.work
        where pipeline_id = %s and sweep_after is not null and allow_deletes
    )
    """
    seen = connection.value(query, (pipeline.id,))
    return bool(seen)


def dispel_doubt(connection: Connection, pipeline: Pipeline) -> None:
    """Let workers go on with what has been paused by a doubt, since a person knows better."""
    connection.execute(
        """
        update pgembed.pipelines
        set state = 'active', state_reason = null
        where id = %s and state = 'paused' and strpos(state_reason, %s) > 0
        """,
        (pipeline.id, UNTOLD),
    )
    connection.execute(
        """
        update pgembed.work
        set allow_deletes = true
        where pipeline_id = %s and sweep_after is not null and not allow_deletes
        """,
        (pipeline.id,),
    )


def _deleted_in_flight(connection: Connection, pipeline: Pipeline) -> list[str]:
    query = sql.SQL(GONE_IN_FLIGHT).format(**source_names(pipeline))
    doing = _SWEEPING.format(pipeline.source)
    with trusting(connection, pipeline.spec), on_users_tables(connection, doing):
        row = connection.execute(query, {"pipeline_id": pipeline.id}).fetchone()
    (keys,) = row or ([],)
    return list(keys)


def _queue_slice(
    connection: Connection,
    pipeline: Pipeline,
    told: Told,
    after_key: str | None,
    slice_records: int,
) -> int:
    found = find_deleted(connection, pipeline, after_key, slice_records=slice_records)
    keys = told.without_waiting(connection, found.keys)
    with connection.transaction():
        keep_pipeline(connection, pipeline)
        queue_deleted(connection, pipeline, keys)
    return len(keys)
