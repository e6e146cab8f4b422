"""Makes a table that is there a target: the columns that it lacks and the pipeline, or neither."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

import numpy as np
import psycopg
from psycopg import sql

from pgqueue_embed.adopt.candidate import Candidate
from pgqueue_embed.adopt.table_check import MADE
from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.locks import in_short_waits
from pgqueue_embed.db.names import Table, with_suffix
from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.vectors import VectorCodec
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.catalog import insert_pipeline, load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.row import to_row
from pgqueue_embed.queue.adoptions import begin_adoption
from pgqueue_embed.source.read import source_names
from pgqueue_embed.source.trust import trusting
from pgqueue_embed.target import ChunkRows, target_of
from pgqueue_embed.target.unusable_indexes import (
    drop_unusable,
    dropped_if_broken_off,
    wait_for_builders,
)

# No record has so many chunks: a row with this index is in no record's way.
REHEARSAL_INDEX = 2**31 - 1

# The end of the name of an index that is built on the key.
KEY_INDEX_SUFFIX = "_pgembed_key"


def attach_table(connection: Connection, candidate: Candidate, doubtful: Sequence[str]) -> Pipeline:
    """Make the pipeline, and the columns that its target lacks; both or neither.

    Raises UsageError when the role does not own the table, the table is in use, or it refuses what
    a worker writes.
    """
    table = candidate.spec.target
    try:
        return in_short_waits(
            connection, lambda: _take(connection, candidate, doubtful), table=table
        )
    except psycopg.errors.UniqueViolation:
        raise UsageError(
            f"pipeline '{candidate.spec.name}' or one with target {table} was made elsewhere"
            " just now"
        ) from None
    except psycopg.errors.InsufficientPrivilege as error:
        raise UsageError(f"cannot adopt {table}: {first_line(error)}") from None


def _take(connection: Connection, candidate: Candidate, doubtful: Sequence[str]) -> Pipeline:
    _add_columns(connection, candidate)
    insert_pipeline(connection, to_row(candidate.spec, candidate.shape, candidate.identity))
    pipeline = load_pipeline(connection, candidate.spec.name)
    with trusting(connection, pipeline.spec):
        _rehearse(connection, pipeline)
    begin_adoption(connection, pipeline, doubtful)
    return pipeline


def _add_columns(connection: Connection, candidate: Candidate) -> None:
    """Add what the table lacks, without reading or writing a row of it.

    A constraint would have to wait until all is adopted, and then read the table under a lock. A
    default that is no constant comes afterwards: with the column, it would fill in every row.
    """
    lacking = candidate.table.lacking
    if not lacking:
        return
    table = candidate.spec.target.identifier
    added = sql.SQL(", ").join(
        sql.SQL("add column {} {}").format(sql.Identifier(name), sql.SQL(MADE[meaning]))
        for meaning, name in lacking.items()
    )
    connection.execute(sql.SQL("alter table {} {}").format(table, added))
    if "created_at" in lacking:
        query = sql.SQL("alter table {} alter column {} set default clock_timestamp()")
        connection.execute(query.format(table, sql.Identifier(lacking["created_at"])))


def _rehearse(connection: Connection, pipeline: Pipeline) -> None:
    """Insert a chunk as a worker would and undo it, so that no constraint or trigger surprises."""
    query = sql.SQL("select {source_key_text} from {source} as source limit 1")
    row = connection.execute(query.format(**source_names(pipeline)), ()).fetchone()
    if row is None:
        return
    vectors = np.zeros((1, pipeline.dimensions), np.float32)
    vectors[0, 0] = 1.0
    chunk = ChunkRows(
        keys=[row[0]],
        document_hashes=[b""],
        chunk_indexes=[REHEARSAL_INDEX],
        texts=["pgembed"],
        start_chars=[0],
        end_chars=[7],
        tokens=[1],
        vectors=vectors,
    )
    try:
        with connection.transaction(force_rollback=True):
            target_of(pipeline).replace(connection, VectorCodec(connection), (), [chunk])
    except psycopg.errors.LockNotAvailable:
        raise
    except psycopg.Error as error:
        raise UsageError(
            f"{pipeline.target} does not take a row as pgembed writes it: {first_line(error)}"
        ) from None


KEY_INDEX = """
select exists (
    select
    from pg_index
    join pg_class on pg_class.oid = indexrelid
    join pg_am on pg_am.oid = relam
    where indrelid = %(table)s::regclass
        and amname = 'btree'
        and indisvalid
        and indpred is null
        and (
            select array_agg(attname::text order by position)
            from unnest(indkey::smallint[]) with ordinality as part (attnum, position)
            join pg_attribute
                on pg_attribute.attrelid = indrelid and pg_attribute.attnum = part.attnum
            where position <= %(columns)s
        ) = %(names)s::text[]
)
"""


def has_key_index(connection: Connection, pipeline: Pipeline) -> bool:
    """Return whether the chunks of a record can be found by an index on its key."""
    names = list(pipeline.spec.columns.fulltext_id)
    values = {"table": pipeline.target.quoted, "names": names, "columns": len(names)}
    found = connection.value(KEY_INDEX, values)
    return bool(found)


def ensure_key_index(
    connection: Connection,
    pipeline: Pipeline,
    *,
    on_build: Callable[[str], None] = lambda _: None,
) -> None:
    """Build an index on the key of a table that lacks one, while the table is used.

    One that is being built is waited for, and one that an interrupted build has left unusable is
    dropped first. Tells `on_build` that it will take its time.
    """
    if has_key_index(connection, pipeline):
        return
    table, names = pipeline.target, pipeline.spec.columns.fulltext_id
    connection.refuse_pooler("building the index on the key")
    on_build(f"building an index on {', '.join(names)} of {table}")
    wait_for_builders(connection, table)
    if has_key_index(connection, pipeline):
        return
    index = _free_index(connection, table)
    build = sql.SQL("create index concurrently {} on {} ({})").format(
        sql.Identifier(index.name),
        table.identifier,
        sql.SQL(", ").join(map(sql.Identifier, names)),
    )
    with dropped_if_broken_off(connection, table, index.name):
        connection.execute(build)


def _free_index(connection: Connection, table: Table) -> Table:
    """Return what the index may be called, once what was left of it under that name is dropped.

    The name may be that of an index on other columns, or of another table whose name begins so.
    """
    for number in count():
        index = _index_of(table, f"{KEY_INDEX_SUFFIX}{number or ''}")
        drop_unusable(connection, table, index.name)
        if not connection.has_relation(index):
            return index
    raise AssertionError("there is always another number")


def _index_of(table: Table, suffix: str) -> Table:
    return Table(schema=table.schema, name=with_suffix(table.name, suffix))
