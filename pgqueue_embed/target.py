"""The target table: its shape, and how a record's chunks and vectors are replaced in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from pgqueue_embed.connect import Connection
from pgqueue_embed.key import Key
from pgqueue_embed.settings import Pipeline, Table, TargetColumns
from pgqueue_embed.vectors import VectorCodec


@dataclass(frozen=True, kw_only=True)
class ChunkRows:
    """Chunks to write, column by column; all sequences and `vectors` have one entry a chunk.

    `start_chars` and `end_chars` are character offsets in the document, `vectors` is float32 of
    shape (chunks, dimensions) with rows of unit norm.
    """

    keys: Sequence[str]
    chunk_indexes: Sequence[int]
    texts: Sequence[str]
    start_chars: Sequence[int]
    end_chars: Sequence[int]
    tokens: Sequence[int]
    vectors: NDArray[np.float32]


CREATE = """
create table {target} (
    {id} bigint generated always as identity primary key,
    {key_definitions},
    {chunk_id} text not null unique,
    {chunk_index} integer not null,
    {text_chunk} text not null,
    {start_char} integer not null,
    {end_char} integer not null,
    {tokens} integer not null,
    {embedding} {vector_type} not null,
    {created_at} timestamptz not null default clock_timestamp()
)
"""


def create_target(
    connection: Connection,
    *,
    table: Table,
    columns: TargetColumns,
    key: Key,
    vector_type: sql.Composable,
    pipeline_name: str,
) -> None:
    """Create the target table, its index on the source key, and comments on both."""
    names = {
        "target": table.identifier,
        "key_definitions": sql.SQL(",\n    ").join(_definitions(columns, key)),
        "vector_type": vector_type,
        **column_names(columns),
    }
    connection.execute(sql.SQL(CREATE).format(**names))
    connection.execute(sql.SQL("create index on {target} ({fulltext_id})").format(**names))
    comment = f"Chunks and vectors of pgembed pipeline {pipeline_name}."
    connection.execute(
        sql.SQL("comment on table {target} is {comment}").format(**names, comment=comment)
    )
    connection.execute(
        sql.SQL("comment on column {target}.{start_char} is {comment}").format(
            **names,
            comment="Offset of the chunk's first character in the document, counted from 0.",
        )
    )


def _definitions(columns: TargetColumns, key: Key) -> list[sql.Composable]:
    return [
        sql.SQL("{} {} not null").format(sql.Identifier(name), sql.SQL(column.type))
        for name, column in zip(columns.fulltext_id, key.columns, strict=True)
    ]


def column_names(columns: TargetColumns) -> dict[str, sql.Composable]:
    """Return the identifiers of a target's columns by their meaning; those of the key as a list."""
    return {
        meaning: sql.SQL(", ").join(map(sql.Identifier, name))
        if isinstance(name, tuple)
        else sql.Identifier(name)
        for meaning, name in vars(columns).items()
    }


DELETE = "delete from {target} as target where {key_is_among_keys}"

INSERT = """
insert into {target}
    ({fulltext_id}, {chunk_id}, {chunk_index}, {text_chunk},
    {start_char}, {end_char}, {tokens}, {embedding})
select
    {key_values}, chunk.key || '_' || chunk_index, chunk_index, text_chunk,
    start_char, end_char, tokens, embedding
from unnest(
    %(keys)b::text[], %(chunk_indexes)b::integer[], %(texts)b::text[],
    %(start_chars)b::integer[], %(end_chars)b::integer[], %(tokens)b::integer[], %(vectors)b
) as chunk (key, chunk_index, text_chunk, start_char, end_char, tokens, embedding)
"""


def delete_chunks(connection: Connection, pipeline: Pipeline, keys: Sequence[str]) -> None:
    """Delete all chunks of the records `keys`."""
    if keys:
        query = sql.SQL(DELETE).format(**_names(pipeline))
        connection.execute(query, {"keys": list(keys)})


def insert_chunks(
    connection: Connection, codec: VectorCodec, pipeline: Pipeline, rows: ChunkRows
) -> None:
    """Insert `rows` by one statement over binary arrays.

    Not COPY: a client that stops inside COPY FROM STDIN switches every server timeout off and
    holds its claim for ever.
    """
    if not rows.keys:
        return
    values = {
        "keys": list(rows.keys),
        "chunk_indexes": list(rows.chunk_indexes),
        "texts": list(rows.texts),
        "start_chars": list(rows.start_chars),
        "end_chars": list(rows.end_chars),
        "tokens": list(rows.tokens),
        "vectors": codec.pack(rows.vectors, pipeline.vector_type),
    }
    connection.execute(sql.SQL(INSERT).format(**_names(pipeline)), values)


def _names(pipeline: Pipeline) -> dict[str, sql.Composable]:
    key = pipeline.key
    return {
        **column_names(pipeline.columns),
        "target": pipeline.target.identifier,
        "key_is_among_keys": key.among("target", pipeline.columns.fulltext_id, "keys"),
        "key_values": sql.SQL(", ").join(key.values(sql.SQL("chunk.key"))),
    }
