"""Walking through a table that is being adopted: right records are settled, others queued.

The source is walked in the order of its keys, then the keys of the table, for those that the source
does not have. Each slice is its own commit; whoever comes after an interruption goes on behind it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from psycopg import sql

from pgqueue_embed.adopt.fill import fill, versions_of
from pgqueue_embed.adopt.judge import RIGHT, Assessment, Judge, Judgement, Placed
from pgqueue_embed.adopt.slices import JudgedSlice, next_slice
from pgqueue_embed.adopt.stored_chunks import table_names
from pgqueue_embed.db.faults import on_users_tables
from pgqueue_embed.db.locks import in_short_waits
from pgqueue_embed.db.refusals import refusals
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import LeaseLost, UsageError
from pgqueue_embed.ledger import records
from pgqueue_embed.ledger.commits import Commit, record_commit
from pgqueue_embed.ledger.verdicts import Current, Finding, Found
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.adoptions import (
    Adoption,
    Counts,
    advance_adoption,
    read_adoption,
    take_adoption_turn,
)
from pgqueue_embed.queue.deleted import is_doubtful
from pgqueue_embed.queue.enqueue import Slice
from pgqueue_embed.queue.work_items import Handling, add_items
from pgqueue_embed.source.trust import trusting

KEYS_PER_SLICE = 10_000


def adopt_records(
    connection: Connection,
    pipeline: Pipeline,
    judge: Judge,
    *,
    on_slice: Callable[[Slice], None] = lambda _: None,
) -> Counts:
    """Go through the table to its end, and return what was found from its beginning.

    Workers may run meanwhile. Raises UsageError when the pipeline is dropped, or a table is locked
    for too long, PipelineFault when one cannot be read or written.
    """
    try:
        while not (adoption := _state_of(connection, pipeline)).is_finished:
            with on_users_tables(connection, f"adopting {pipeline.target}"):
                if adoption.walking == "source":
                    done = _walk_source(connection, pipeline, judge, adoption)
                else:
                    done = _walk_table(connection, pipeline, adoption)
            if done is not None:
                on_slice(done)
        return adoption.counts
    except LeaseLost as error:
        raise UsageError(f"the adoption ends: {error}") from None


def _state_of(connection: Connection, pipeline: Pipeline) -> Adoption:
    adoption = read_adoption(connection, pipeline)
    if adoption is None:
        raise LeaseLost(f"{pipeline.name} was dropped")
    return adoption


def _walk_source(
    connection: Connection, pipeline: Pipeline, judge: Judge, adoption: Adoption
) -> Slice | None:
    judged = next_slice(connection, pipeline, judge, last_key=adoption.last_key)

    def settle() -> Counts | None:
        with trusting(connection, pipeline.spec):
            return _settle_slice(connection, pipeline, adoption, _doubting(judged, adoption))

    counts = in_short_waits(connection, settle, table=pipeline.source)
    if counts is None:
        return None
    return Slice(scanned=len(judged.records), queued=counts.queued, finished=False)


def _doubting(judged: JudgedSlice, adoption: Adoption) -> JudgedSlice:
    """Return the slice with records that the sample has found out judged by that."""
    wrong = {
        key: Judgement(worth=Assessment.WRONG_VECTORS)
        for key in adoption.doubtful
        if key in judged.judgements
    }
    return replace(judged, judgements={**judged.judgements, **wrong})


def _settle_slice(
    connection: Connection, pipeline: Pipeline, adoption: Adoption, judged: JudgedSlice
) -> Counts | None:
    """Write what was judged, compared with what is current under the mutex of each record.

    None if another session has done the slice.
    """
    if not take_adoption_turn(connection, pipeline, adoption):
        return None
    keys = [record.key for record in judged.records]
    records.lock_records(connection, pipeline, keys)
    current = records.read_current(connection, pipeline, keys)
    worths = _assessments(connection, pipeline, judged, current)
    placed = {
        key: judged.judgements[key].placed
        for key, worth in worths.items()
        if worth is Assessment.ADOPTED
    }
    worths |= dict.fromkeys(_fill(connection, pipeline, placed), Assessment.TEXT_DIFFERS)
    _settle(connection, pipeline, judged, worths)
    counts = replace(count_assessments(judged, worths), settled=len(keys) - len(worths))
    walking = "source" if judged.last_key is not None else "target"
    advance_adoption(connection, pipeline, walking=walking, last_key=judged.last_key, counts=counts)
    return counts


def _assessments(
    connection: Connection,
    pipeline: Pipeline,
    judged: JudgedSlice,
    current: dict[str, Current],
) -> dict[str, Assessment]:
    """Return what each record is worth that no worker has settled, by key.

    What has changed since it was read is left to a worker, with whatever it finds then.
    """
    keys = [each.key for each in judged.records if current[each.key].state is None]
    versions = versions_of(connection, pipeline, keys)
    hashes = {each.key: each.document_hash for each in judged.records}
    worths = {}
    for key in keys:
        same = current[key].present and current[key].document_hash == hashes[key]
        stored = {each.version for each in judged.stored.get(key, ())}
        unchanged = same and versions.get(key, set()) == stored
        worths[key] = judged.judgements[key].worth if unchanged else Assessment.TEXT_DIFFERS
    return worths


def _fill(
    connection: Connection, pipeline: Pipeline, placed: Mapping[str, Sequence[Placed]]
) -> list[str]:
    """Fill in the chunks `placed`, and return the keys of records that the table refuses.

    As a constraint of the user's may, on the order of chunks, say.
    """

    def fill_some(keys: Sequence[str]) -> dict[str, str]:
        fill(connection, pipeline, {key: placed[key] for key in keys})
        return {}

    return list(refusals(connection, f"filling in {pipeline.target}", list(placed), fill_some))


def _settle(
    connection: Connection, pipeline: Pipeline, judged: JudgedSlice, worths: dict[str, Assessment]
) -> None:
    adopted = [key for key, worth in worths.items() if worth is Assessment.ADOPTED]
    empty = [key for key, worth in worths.items() if worth is Assessment.EMPTY]
    hashes = {each.key: each.document_hash for each in judged.records}
    for keys, state, found in (
        (adopted, "embedded", Found.EMBEDDED),
        (empty, "empty", Found.EMPTY),
    ):
        findings = [
            Finding(
                key=key,
                found=found,
                document_hash=hashes[key],
                chunks=len(judged.judgements[key].placed),
            )
            for key in keys
        ]
        records.settle(connection, pipeline, findings, state, worker_id=None)
    others = [key for key, worth in worths.items() if worth not in RIGHT]
    add_items(connection, pipeline.id, others)
    # No records and chunks: they were not embedded now, and would pass for the workers' rate.
    record_commit(connection, pipeline.id, None, Commit(embedded=len(adopted), empty=len(empty)))


def count_assessments(judged: JudgedSlice, worths: dict[str, Assessment]) -> Counts:
    """Return how many records are worth what, and the chunks of those that are right."""
    number = Counter(worth.value for worth in worths.values())
    chunks = sum(
        len(judged.judgements[key].placed)
        for key, worth in worths.items()
        if worth is Assessment.ADOPTED
    )
    return Counts(**number, chunks=chunks)


# The ledger has those that a worker embedded meanwhile: enqueue finds them if they are gone.
TABLE_KEYS = """
with keys as (
    select distinct {key_columns}
    from {target} as target
    where {target_present} {after}
    order by {key_order}
    limit %(slice_keys)s
)
select
    {listed_text},
    not exists (select from {source} as source where {source_key} = {listed})
        and not exists (
            select
            from pgembed.records
            where pipeline_id = %(pipeline_id)s
                and records.key = pgembed.ledger_key({listed_text}) collate "C"
                and state is not null
        )
from keys
order by {listed_order}
"""


def table_keys(
    connection: Connection, pipeline: Pipeline, last_key: str | None, slice_keys: int
) -> list[tuple[str, bool]]:
    """Return keys of the table behind `last_key`, and whether their record is gone."""
    key, names = pipeline.key, pipeline.spec.columns.fulltext_id
    columns = [sql.Identifier("target", name) for name in names]
    after = sql.SQL("and {} > {}").format(
        key.of("target", names), key.value(sql.SQL("%(last_key)s"))
    )
    query = sql.SQL(TABLE_KEYS).format(
        **table_names(connection, pipeline),
        key_columns=key.numbered(columns),
        target_present=sql.SQL(" and ").join(
            sql.SQL("{} is not null").format(column) for column in columns
        ),
        after=sql.SQL("") if last_key is None else after,
        key_order=sql.SQL(", ").join(map(sql.Identifier, key.positions)),
        listed_text=key.text("keys", key.positions),
        listed=key.of("keys", key.positions),
        listed_order=key.listed("keys", key.positions),
    )
    values = {"last_key": last_key, "slice_keys": slice_keys, "pipeline_id": pipeline.id}
    return connection.execute(query, values).fetchall()


def _walk_table(connection: Connection, pipeline: Pipeline, adoption: Adoption) -> Slice | None:
    def queue_slice() -> Slice | None:
        if not take_adoption_turn(connection, pipeline, adoption):
            return None
        with trusting(connection, pipeline.spec):
            keys = table_keys(connection, pipeline, adoption.last_key, KEYS_PER_SLICE)
        gone = [key for key, is_gone in keys if is_gone]
        counts = Counts(gone=len(gone))
        # Else their chunks stay until `pgembed enqueue` is told otherwise: it asks.
        so_far = adoption.counts + counts
        allowed = not is_doubtful(so_far.gone, so_far.records)
        add_items(connection, pipeline.id, gone, Handling(allow_deletes=allowed))
        finished = len(keys) < KEYS_PER_SLICE
        advance_adoption(
            connection,
            pipeline,
            walking="finished" if finished else "target",
            last_key=None if finished else keys[-1][0],
            counts=counts,
        )
        return Slice(scanned=0, queued=len(gone), finished=finished)

    return in_short_waits(connection, queue_slice, table=pipeline.target)
