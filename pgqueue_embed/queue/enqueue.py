"""Enqueue: find the records that want embedding and queue their keys, slice by slice.

The scan walks the source in key order and compares it with the ledger and the queue; it never
trusts that what lies behind the cursor is done, since a late commit may hide there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from psycopg import sql

from pgqueue_embed.db.faults import on_users_tables
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import PipelineFault, UntrustedCode, UsageError
from pgqueue_embed.pipeline.option import check_count, check_where
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.adoptions import check_adopted
from pgqueue_embed.queue.deleted import dispel_doubt, enqueue_deleted
from pgqueue_embed.queue.first_slice import QUEUE_FIRST_SLICE
from pgqueue_embed.queue.item_size import records_per_item
from pgqueue_embed.queue.scan_cursor import advance_scan, open_scan, take_scan_turn
from pgqueue_embed.queue.work_items import CHANGES
from pgqueue_embed.source.ambiguous import HASH_OF_ROWS, keys_that_occur_twice, warn_of
from pgqueue_embed.source.check import check_condition
from pgqueue_embed.source.read import and_chunk_is_of, relation, source_names
from pgqueue_embed.source.trust import check_trust, trusting

# A slice has twice as many records as changes wait, since each slice looks at all of those; with
# more, it would be long before it is committed.
SLICE_RECORDS = 50_000
RECORDS_A_WAITING_CHANGE = 2
MOST_SLICE_RECORDS = 1_000_000

# Nothing but the queue is looked at, and the less often the better.
FIRST_SLICE_RECORDS = 250_000


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which records to queue: those matching `where` (SQL over the source), at most `limit`.

    `everything` queues those that are embedded already too.
    """

    where: str | None = None
    limit: int | None = None
    everything: bool = False

    def __post_init__(self) -> None:
        check_where(self.where)
        if self.limit is not None:
            check_count("--limit", self.limit)

    @property
    def is_whole(self) -> bool:
        """Whether all records are looked at, those that are gone included."""
        return self.where is None and self.limit is None

    def as_text(self) -> str:
        """Return what makes two scans the same scan."""
        return json.dumps([self.where, self.limit, self.everything])


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many records a slice has, one of a first enqueue, and a work item."""

    slice_records: int
    first_slice_records: int
    item_records: int


class Walked(NamedTuple):
    """What was done in a slice up to the key `reached`, and whether the source `ended` there."""

    scanned: int
    queued: int
    reached: str | None
    ended: bool


@dataclass(frozen=True, kw_only=True)
class Slice:
    """What one committed slice of a scan did."""

    scanned: int
    queued: int
    finished: bool


def enqueue(
    connection: Connection,
    pipeline: Pipeline,
    selection: Selection,
    *,
    on_slice: Callable[[Slice], None] = lambda _: None,
    slice_records: int | None = None,
    allow_deletes: bool = False,
) -> int:
    """Queue the records of `selection` that do not wait already; returns how many were.

    These are new and changed records, and with neither `where` nor `limit` those that the source
    has lost, whose vectors go. If too much has gone (see deleted.LedgerSweep), the pipeline is
    paused and PipelineFault raised; with `allow_deletes` it is queued, and such a pause ends.
    Each slice, of `slice_records` or as many as are good, is its own commit. An interrupted enqueue
    goes on where it stopped, and two machines that enqueue at once take turns. A scan that was
    resumed is followed by a fresh one, for what came in behind its cursor. Raises UsageError for a
    `where` that PostgreSQL refuses, and while the target is being adopted, PipelineFault when the
    source cannot be read.
    """
    check_adopted(connection, pipeline)
    if allow_deletes and not selection.is_whole:
        raise UsageError("--allow-deletes: without --where and --limit only, what is gone is found")
    check_trust(connection, pipeline.spec, where=selection.where)
    if selection.where is not None:
        check_condition(connection, pipeline.source, selection.where)
    sizes = Sizes(
        slice_records=slice_records or _records_a_slice(connection, pipeline),
        first_slice_records=slice_records or FIRST_SLICE_RECORDS,
        item_records=records_per_item(_wanted_records(connection, pipeline, selection)),
    )
    queued = 0
    while True:
        resumed = open_scan(connection, pipeline, selection.as_text())
        while True:
            done = _scan_slice(connection, pipeline, selection, sizes)
            queued += done.queued
            on_slice(done)
            if done.finished:
                break
        if not resumed or selection.limit is not None:
            break
    if selection.is_whole:
        queued += enqueue_deleted(
            connection, pipeline, slice_records=sizes.slice_records, allow_deletes=allow_deletes
        )
    if allow_deletes:
        dispel_doubt(connection, pipeline)
    return queued


def estimated_records(connection: Connection, pipeline: Pipeline) -> int:
    """Return about how many rows the source has: counted if few, else by the statistics."""
    estimate = (
        connection.value(
            "select reltuples::bigint from pg_class where oid = to_regclass(%s)",
            (pipeline.source.quoted,),
        )
        or 0
    )
    if estimate > 1_000_000:
        return int(estimate)
    count = sql.SQL("select count(*) from {}").format(pipeline.source.identifier)
    with on_users_tables(connection, f"counting {pipeline.source}"):
        counted = connection.value(count)
    return int(counted)


def _wanted_records(connection: Connection, pipeline: Pipeline, selection: Selection) -> int:
    estimate = estimated_records(connection, pipeline)
    return min(estimate, selection.limit) if selection.limit else estimate


def _records_a_slice(connection: Connection, pipeline: Pipeline) -> int:
    waiting = connection.value(WAITING_CHANGES, (pipeline.id, CHANGES))
    wanted = RECORDS_A_WAITING_CHANGE * int(waiting)
    return min(max(SLICE_RECORDS, wanted), MOST_SLICE_RECORDS)


WAITING_CHANGES = """
select coalesce(sum(records), 0) from pgembed.work where pipeline_id = %s and priority = %s
"""


def _scan_slice(
    connection: Connection, pipeline: Pipeline, selection: Selection, sizes: Sizes
) -> Slice:
    with connection.transaction():
        turn = take_scan_turn(connection, pipeline, selection.as_text())
        if turn is None:
            return Slice(scanned=0, queued=0, finished=True)
        last_key, queued_before = turn
        room = None if selection.limit is None else selection.limit - queued_before
        done = queue_slice(connection, pipeline, selection, last_key, sizes, room=room)
        finished = done.ended or (room is not None and done.queued >= room)
        advance_scan(connection, pipeline, done.reached, done.queued, finished=finished)
    return Slice(scanned=done.scanned, queued=done.queued, finished=finished)


# Items of bulk loading hold their keys in key order, so that the first and the last one tell
# whether an item can hold a key of the slice; those of changes are few and all looked into. The
# ledger is looked up key by key: a hash join would read all of it for every slice. Before a
# pipeline has any, nothing is looked up. Nor is the queue, but for what is in flight, if the ledger
# says that nothing of the slice wants anything.
#
# A claim in flight may have compared a record with its text before that changed, so neither its
# item nor the ledger says that the record needs nothing: it is queued once more. So is a record
# that is to be embedded in any case, if what waits for it would find it unchanged.
QUEUE_SLICE = """
with flying as materialized (
    select work_id from pgembed.claimed_work
),
ledger_begun as materialized (
    select exists (select 1 from pgembed.records where pipeline_id = %(pipeline_id)s) as begun
),
slice as materialized (
    select {source_key_columns}
    from {source} as source
    where {source_present} {after}
    order by {source_order}
    limit %(slice_records)s
),
first as (
    select * from slice order by {slice_order} limit 1
),
last as (
    select * from slice order by {slice_order_descending} limit 1
),
compared as materialized (
    select
        {slice_columns},
        ledger.state is not null as known,
        case
            when %(everything)s or ledger.state is null then true
            when ledger.generation is distinct from %(generation)s then true
            else ledger.document_hash is distinct from {hash_of_rows}
                {or_chunks_are_missing}
        end as differs
    from slice
    left join lateral (
        select state, generation, document_hash
        from pgembed.records
        where (select begun from ledger_begun)
            and pipeline_id = %(pipeline_id)s
            and records.key = pgembed.ledger_key({slice_key_text}) collate "C"
        limit 1
    ) as ledger on true
),
pending as materialized (
    select
        {listed_key_columns},
        work.embed_again,
        work.id in (select work_id from flying) as in_flight
    from first, last, pgembed.work
    cross join unnest(work.keys) as listed (key)
    where work.pipeline_id = %(pipeline_id)s
        and (
            work.priority = 0
            or ({first_of_item} <= {last_key} and {last_of_item} >= {first_key})
        )
        and (
            work.id in (select work_id from flying)
            or (select exists (select from compared where differs))
        )
),
waiting as (
    select
        {pending_columns},
        bool_or(in_flight) as in_flight,
        bool_or(not in_flight) as in_queue,
        bool_or(not in_flight and embed_again) as in_queue_again
    from pending
    where {pending_key} in (select {slice_columns} from slice)
    group by {pending_columns}
),
wanted as (
    select {slice_columns}, slice.known or waiting.in_flight is not null as known
    from compared as slice
    left join waiting on {waiting_key} = {slice_key}
    where (slice.differs or waiting.in_flight)
        and case
            when %(everything)s and slice.known
            then waiting.in_queue_again is not true
            else waiting.in_queue is not true
        end
    order by {slice_order}
    limit %(room)s
),
numbered as (
    select
        slice.*,
        (row_number() over (partition by known order by {slice_order}) - 1) / %(item_records)s
            as item
    from wanted as slice
),
queued as (
    insert into pgembed.work (pipeline_id, keys, records, known, embed_again, allow_deletes)
    select
        %(pipeline_id)s,
        array_agg({slice_key_text} order by {slice_order}),
        count(*),
        known,
        %(everything)s,
        false
    from numbered as slice
    group by known, item
    order by known, item
    returning records
)
select
    (select count(*) from slice),
    (select coalesce(sum(records), 0) from queued),
    (select {slice_key_text} from last as slice),
    (select count(*) from slice) < %(slice_records)s,
    {keys_that_occur_twice}
"""

# A record that was deleted and is there again has the text of before, and its chunks went with the
# foreign key, or its vector with the row; or they came with another key that is called like it now,
# and has the same text.
OR_CHUNKS_ARE_MISSING = """
or (
    ledger.state = 'embedded'
    and not exists (
        select from {target} as target
        where {target_key} = {slice_key} {and_chunk_is_of_slice}
    )
)
"""


def queue_slice(
    connection: Connection,
    pipeline: Pipeline,
    selection: Selection,
    last_key: str | None,
    sizes: Sizes,
    *,
    room: int | None = None,
) -> Walked:
    """Queue what differs from the ledger of a slice of records behind `last_key`, at most `room`.

    Of a first slice, for which ledger and queue have nothing to compare with, it is all of them.
    """
    values: dict[str, Any] = {
        "pipeline_id": pipeline.id,
        "generation": pipeline.generation,
        "everything": selection.everything,
        "last_key": last_key,
        "room": room,
        **asdict(sizes),
    }
    names = _slice_names(pipeline, selection, resumes=last_key is not None)
    doing = f"reading {pipeline.source}"
    try:
        with (
            trusting(connection, pipeline.spec, where=selection.where),
            on_users_tables(connection, doing),
        ):
            rows = (
                connection.execute(sql.SQL(query).format(**names), values).fetchone()
                for query in (QUEUE_FIRST_SLICE, QUEUE_SLICE)
            )
            *walked, twice = next(filter(None, rows))
    except PipelineFault as error:
        if selection.where is None or isinstance(error, UntrustedCode):
            raise
        raise UsageError(f"--where fails on a record: {error}") from None
    warn_of(pipeline, twice)
    return Walked(*walked)


def _slice_names(
    pipeline: Pipeline, selection: Selection, *, resumes: bool
) -> dict[str, sql.Composable]:
    key = pipeline.key
    listed, reached = sql.SQL("listed.key"), sql.SQL("%(last_key)s")
    after = sql.SQL("and {} > {}").format(key.of("source"), key.value(reached))
    names = {
        **source_names(pipeline),
        "source": relation(pipeline, selection.where),
        "source_key_columns": key.numbered([column.of("source") for column in key.columns]),
        "source_order": key.listed("source"),
        "after": after if resumes else sql.SQL(""),
        "listed_key_columns": key.numbered(key.values(listed)),
        "first_of_item": key.value(sql.SQL("work.first_key")),
        "last_of_item": key.value(sql.SQL("work.last_key")),
        "slice_order_descending": key.listed("slice", key.positions, " desc"),
        "slice_order": key.listed("slice", key.positions),
        "slice_columns": key.listed("slice", key.positions),
        "pending_columns": key.listed("pending", key.positions),
        "slice_key_text": key.text("slice", key.positions),
        "or_chunks_are_missing": sql.SQL(""),
    }
    for alias in ("first", "last", "slice", "pending", "waiting"):
        names[f"{alias}_key"] = key.of(alias, key.positions)
    if pipeline.spec.foreign_key or pipeline.spec.into_column is not None:
        names["and_chunk_is_of_slice"] = and_chunk_is_of(pipeline, names["slice_key_text"])
        names["or_chunks_are_missing"] = sql.SQL(OR_CHUNKS_ARE_MISSING).format(**names)
    names["hash_of_rows"] = sql.SQL(HASH_OF_ROWS).format(**names)
    names["keys_that_occur_twice"] = keys_that_occur_twice(pipeline, names)
    return names
