"""A target of its own: a table with a row a chunk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from pgqueue_embed.connect import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.identifiers import next_name, quoted
from pgqueue_embed.key import Key
from pgqueue_embed.tables import Table, TargetColumns
from pgqueue_embed.target.chunks import ChunkRows, Right, column_names
from pgqueue_embed.vectors import VectorCodec

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


@dataclass(frozen=True, kw_only=True)
class ChunkTable:
    """A table of chunks, made by `create`, that refers to the source by its key; see Target."""

    table: Table
    columns: TargetColumns
    vector_type: str
    key: Key

    def __str__(self) -> str:
        return str(self.table)

    @property
    def rows(self) -> sql.Composable:
        return self.table.identifier

    @property
    def written_columns(self) -> Sequence[str]:
        unread = (self.columns.id, self.columns.created_at)
        return [name for name in self.columns.names() if name not in unread]

    @property
    def rights(self) -> Sequence[Right]:
        return (Right("select"), Right("insert"), Right("delete"))

    @property
    def next_place(self) -> dict[str, Any]:
        return {"target": Table(schema=self.table.schema, name=next_name(self.table.name))}

    def check(self, connection: Connection) -> None:
        schema = quoted(self.table.schema)
        row = connection.execute(
            "select to_regclass(%s), to_regnamespace(%s)", (self.table.quoted, schema)
        ).fetchone()
        there, schema_there = row or (None, None)
        if there is not None:
            raise UsageError(
                f"table {self.table} exists already; name another with --target-table, or drop it"
            )
        if schema_there is None:
            raise UsageError(
                f"there is no schema {self.table.schema}; create it: create schema {schema}"
            )

    def create(
        self, connection: Connection, codec: VectorCodec, *, dimensions: int, pipeline_name: str
    ) -> bool:
        """Create the table, its index on the source key, and comments on both."""
        type_name = codec.type_name(connection, self.vector_type, dimensions)
        names = {**self._names(), "vector_type": sql.SQL(type_name)}
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
        return True

    def replace(
        self,
        connection: Connection,
        codec: VectorCodec,
        keys: Sequence[str],
        portions: Iterable[ChunkRows],
    ) -> dict[str, str]:
        """Delete what is there unconditionally, and insert; a table takes all or raises."""
        self.clear(connection, keys)
        for rows in portions:
            self.insert(connection, codec, rows)
        return {}

    def clear(self, connection: Connection, keys: Sequence[str]) -> None:
        if keys:
            query = sql.SQL(DELETE).format(**self._names())
            connection.execute(query, {"keys": list(keys)})

    def insert(self, connection: Connection, codec: VectorCodec, rows: ChunkRows) -> None:
        """Insert `rows` by one statement over binary arrays.

        Not COPY: a client that stops inside COPY FROM STDIN switches every server timeout off and
        holds its claim for ever.
        """
        values = {
            "keys": list(rows.keys),
            "chunk_indexes": list(rows.chunk_indexes),
            "texts": list(rows.texts),
            "start_chars": list(rows.start_chars),
            "end_chars": list(rows.end_chars),
            "tokens": list(rows.tokens),
            "vectors": codec.pack(rows.vectors, self.vector_type),
        }
        connection.execute(sql.SQL(INSERT).format(**self._names()), values)

    def drop(self, connection: Connection) -> None:
        connection.execute(sql.SQL("drop table if exists {target}").format(**self._names()))

    def _names(self) -> dict[str, sql.Composable]:
        definitions = (
            sql.SQL("{} {} not null").format(sql.Identifier(name), sql.SQL(column.type))
            for name, column in zip(self.columns.fulltext_id, self.key.columns, strict=True)
        )
        return {
            **column_names(self.columns),
            "target": self.table.identifier,
            "key_definitions": sql.SQL(",\n    ").join(definitions),
            "key_is_among_keys": self.key.among("target", self.columns.fulltext_id, "keys"),
            "key_values": sql.SQL(", ").join(self.key.values(sql.SQL("chunk.key"))),
        }
