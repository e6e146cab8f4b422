"""Enqueue: find the records that want embedding and queue their keys, slice by slice.

The scan walks the source in key order and compares it with the ledger and the queue; it never
trusts that what lies behind the cursor is done, since a late commit may hide there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from pgqueue_embed.claims import FLYING
from pgqueue_embed.connect import Connection, first_line
from pgqueue_embed.errors import UsageError
from pgqueue_embed.gone import enqueue_gone
from pgqueue_embed.policy import records_per_item
from pgqueue_embed.settings import Pipeline
from pgqueue_embed.source import source_names

SLICE_RECORDS = 50_000


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which records to queue: those matching `where` (SQL over the source), at most `limit`.

    `everything` queues those that are embedded already too.
    """

    where: str | None = None
    limit: int | None = None
    everything: bool = False

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit {self.limit}: give at least 1")

    def as_text(self) -> str:
        """Return what makes two scans the same scan."""
        return json.dumps([self.where, self.limit, self.everything])


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
    slice_records: int = SLICE_RECORDS,
) -> int:
    """Queue the records of `selection` that do not wait already; returns how many were.

    These are new and changed records, and with neither `where` nor `limit` those that the source
    has lost, whose vectors go.
    Each slice is its own commit. An interrupted enqueue goes on where it stopped, and two
    machines that enqueue at once take turns. A scan that was resumed is followed by a fresh one,
    for what came in behind its cursor. Raises UsageError for a `where` that PostgreSQL refuses.
    """
    _check_where(connection, pipeline, selection.where)
    item_records = records_per_item(_wanted_records(connection, pipeline, selection))
    queued = 0
    while True:
        resumed = _open_scan(connection, pipeline, selection)
        while True:
            done = _scan_slice(connection, pipeline, selection, slice_records, item_records)
            queued += done.queued
            on_slice(done)
            if done.finished:
                break
        if not resumed or selection.limit is not None:
            break
    if selection.where is None and selection.limit is None:
        queued += enqueue_gone(connection, pipeline, slice_records=slice_records)
    return queued


def estimated_records(connection: Connection, pipeline: Pipeline) -> int:
    """Return about how many records the source has: counted if few, else by the statistics."""
    name = sql.Identifier(pipeline.source.schema, pipeline.source.name).as_string(connection)
    (estimate,) = connection.execute(
        "select reltuples::bigint from pg_class where oid = %s::regclass", (name,)
    ).fetchone() or (0,)
    if estimate > 1_000_000:
        return int(estimate)
    count = sql.SQL("select count(*) from {source}").format(**source_names(pipeline))
    (counted,) = connection.execute(count).fetchone() or (0,)
    return int(counted)


def _wanted_records(connection: Connection, pipeline: Pipeline, selection: Selection) -> int:
    estimate = estimated_records(connection, pipeline)
    return min(estimate, selection.limit) if selection.limit else estimate


def _check_where(connection: Connection, pipeline: Pipeline, where: str | None) -> None:
    if where is None:
        return
    # Inside CASE, a parenthesis of the condition cannot close one of the statement's.
    query = sql.SQL(
        "select 1 from {source} as source where case when {where}\nthen true end limit 0"
    )
    try:
        connection.execute(query.format(**source_names(pipeline), where=sql.SQL(where)))
    except psycopg.Error as error:
        reason = first_line(error)
        raise UsageError(f"--where is not a condition over {pipeline.source}: {reason}") from None


def _escaped(where: str) -> str:
    # The condition is the user's own SQL; a % in it is not a placeholder of ours.
    return where.replace("%", "%%")


OPEN = """
insert into pgembed.scans (pipeline_id, selection)
values (%(pipeline_id)s, %(selection)s)
on conflict (pipeline_id) do update
set selection = excluded.selection,
    last_key = null,
    queued = 0,
    finished = false,
    started_at = clock_timestamp()
where scans.finished or scans.selection <> excluded.selection
"""


def _open_scan(connection: Connection, pipeline: Pipeline, selection: Selection) -> bool:
    """Start a scan, or join an unfinished one of the same selection; returns whether joined."""
    values = {"pipeline_id": pipeline.id, "selection": selection.as_text()}
    return connection.execute(OPEN, values).rowcount == 0


# Keys must read the same, and the cursor be the newest, whatever the session's settings are.
OPENING = """
set transaction isolation level read committed;
set local datestyle = 'ISO, YMD';
set local timezone = 'UTC'
"""

# The cursor's row is the turn of one machine; FOR NO KEY UPDATE holds it until the slice commits.
TURN = """
select selection, finished, last_key, queued
from pgembed.scans
where pipeline_id = %s
for no key update
"""

ADVANCE = """
update pgembed.scans
set last_key = coalesce(%(last_key)s, last_key),
    queued = queued + %(queued)s,
    finished = %(finished)s
where pipeline_id = %(pipeline_id)s
"""


def _take_turn(
    connection: Connection, pipeline: Pipeline, selection: Selection
) -> tuple[str | None, int] | None:
    """Return (last key, records queued) of the scan, or None when another machine finished it."""
    row = connection.execute(TURN, (pipeline.id,)).fetchone()
    if row is None or row[0] != selection.as_text():
        raise UsageError(
            f"another enqueue of pipeline '{pipeline.name}' with other options has taken over;"
            " what is queued stays queued, run this one again after it"
        )
    _, finished, last_key, queued = row
    return None if finished else (last_key, queued)


def _scan_slice(
    connection: Connection,
    pipeline: Pipeline,
    selection: Selection,
    slice_records: int,
    item_records: int,
) -> Slice:
    with connection.transaction():
        connection.execute(OPENING)
        turn = _take_turn(connection, pipeline, selection)
        if turn is None:
            return Slice(scanned=0, queued=0, finished=True)
        last_key, queued_before = turn
        room = None if selection.limit is None else selection.limit - queued_before
        values = {
            "pipeline_id": pipeline.id,
            "generation": pipeline.generation,
            "everything": selection.everything,
            "last_key": last_key,
            "slice_records": slice_records,
            "item_records": item_records,
            "room": room,
        }
        query = _slice_query(pipeline, selection, resumes=last_key is not None)
        scanned, queued, reached = _queue(connection, query, values, selection)
        finished = scanned < slice_records or (room is not None and queued >= room)
        advance = {"last_key": reached, "queued": queued, "finished": finished}
        connection.execute(ADVANCE, {**advance, "pipeline_id": pipeline.id})
    return Slice(scanned=scanned, queued=queued, finished=finished)


# Items of bulk loading hold their keys in key order, so that the first and the last one tell
# whether an item can hold a key of the slice; those of changes are few and all looked into. The
# ledger is looked up key by key: a hash join would read all of it for every slice. Before a
# pipeline has any, nothing is looked up.
#
# A claim in flight may have compared a record with its text before that changed, so neither its
# item nor the ledger says that the record needs nothing: it is queued once more.
QUEUE_SLICE = """
with flying as materialized (
    {flying}
),
ledger_begun as materialized (
    select exists (select 1 from pgembed.records where pipeline_id = %(pipeline_id)s) as begun
),
slice as materialized (
    select source.{id} as key
    from {source} as source
    where source.{id} is not null {after} {where}
    order by source.{id}
    limit %(slice_records)s
),
bounds as (
    select
        (select key from slice order by key limit 1) as first,
        (select key from slice order by key desc limit 1) as last
),
pending as materialized (
    select unnest(keys)::{id_type} as key, id in (select work_id from flying) as in_flight
    from pgembed.work, bounds
    where pipeline_id = %(pipeline_id)s
        and (
            priority = 0
            or (first_key::{id_type} <= bounds.last and last_key::{id_type} >= bounds.first)
        )
),
wanted as (
    select slice.key, ledger.state is not null or flight.key is not null as known
    from slice
    left join (select distinct key from pending where in_flight) as flight using (key)
    left join lateral (
        select state, generation, document_hash
        from pgembed.records
        where (select begun from ledger_begun)
            and pipeline_id = %(pipeline_id)s
            and records.key = slice.key::text collate "C"
        limit 1
    ) as ledger on true
    where not exists (select 1 from pending where pending.key = slice.key and not in_flight)
        and case
            when %(everything)s or ledger.state is null or flight.key is not null then true
            when ledger.generation is distinct from %(generation)s then true
            else ledger.document_hash is distinct from (
                select {document_hash} from {source} as source where source.{id} = slice.key
            )
        end
    order by slice.key
    limit %(room)s
),
numbered as (
    select
        key,
        known,
        (row_number() over (partition by known order by key) - 1) / %(item_records)s as item
    from wanted
),
queued as (
    insert into pgembed.work (pipeline_id, keys, records, known, embed_again)
    select %(pipeline_id)s, array_agg(key::text order by key), count(*), known, %(everything)s
    from numbered
    group by known, item
    order by known, item
    returning records
)
select
    (select count(*) from slice),
    (select coalesce(sum(records), 0) from queued),
    (select last::text from bounds)
"""


def _queue(
    connection: Connection, query: sql.Composed, values: dict[str, Any], selection: Selection
) -> tuple[int, int, str | None]:
    try:
        return connection.execute(query, values).fetchone() or (0, 0, None)
    except psycopg.DataError as error:
        what = "--where fails on a record" if selection.where else "a record cannot be read"
        raise UsageError(f"{what}: {first_line(error)}") from None


def _slice_query(pipeline: Pipeline, selection: Selection, *, resumes: bool) -> sql.Composed:
    names = {**source_names(pipeline), "flying": sql.SQL(FLYING)}
    after = sql.SQL("and source.{id} > %(last_key)s::{id_type}") if resumes else sql.SQL("")
    where = sql.SQL(f"and ({_escaped(selection.where)}\n)" if selection.where else "")
    return sql.SQL(QUEUE_SLICE).format(**names, after=after.format(**names), where=where)
