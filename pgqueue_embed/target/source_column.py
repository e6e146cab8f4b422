"""A column of the source as a target: the vector of a record stands in its own row.

The only place where pgembed writes to a user's table, and it writes that one column.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg import sql

from pgqueue_embed.db.names import Table, next_name
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import RecordFault, UsageError
from pgqueue_embed.pipeline.document import Document
from pgqueue_embed.pipeline.key import Key
from pgqueue_embed.pipeline.target_columns import TargetColumns
from pgqueue_embed.target.chunks import ChunkRows, Right, column_names
from pgqueue_embed.target.column_check import check_column, find_column

if TYPE_CHECKING:
    from pgqueue_embed.db.vectors import VectorCodec

# A document that is embedded is its only chunk. What is not selected costs nothing: the planner
# takes the subquery apart, and an index on the column is used as if it were not there.
ROWS = """(
    select
        {key_as_fulltext_id},
        0 as {chunk_index},
        0 as {start_char},
        length(coalesce({document}, '')) as {end_char},
        coalesce({document}, '') as {text_chunk},
        source.{embedding} as {embedding}
    from {table} as source
    where source.{embedding} is not null
)"""

# The row is locked by being updated, and its text compared in the same moment: of a text that has
# changed since the re-check nothing is written. A trigger that touches the text shows afterwards.
# Not an equality: by one, the planner might join, and hash the texts of the whole table.
UPDATE = """
update {table} as source
set {embedding} = chunk.embedding
from unnest(%(keys)b::text[], %(document_hashes)b::bytea[], %(vectors)b)
    as chunk (key, document_hash, embedding)
where {source_key} = {chunk_key} and {document_hash} is not distinct from chunk.document_hash
returning chunk.key, {document_hash} = chunk.document_hash
"""

# Rows without a vector get no new version.
CLEAR = """
update {table} as source
set {embedding} = null
where source.{embedding} is not null and {key_is_among_keys}
"""

CLEAR_ALL = "update {table} as source set {embedding} = null where source.{embedding} is not null"

NOT_TAKEN = (
    "{} did not take the vector: its row is hidden from this role by a policy, or a trigger"
    " keeps it from being updated"
)
TEXT_TOUCHED = (
    "writing the vector into {} changes the text itself: a trigger of the table sets a column that"
    " the document is made of"
)


@dataclass(frozen=True, kw_only=True)
class SourceColumn:
    """The column `columns.embedding` of the source `table`; see Target.

    `is_made` tells that `create` has added it, so that `drop` may remove it.
    """

    table: Table
    columns: TargetColumns
    vector_type: str
    key: Key
    document: Document
    is_made: bool = True

    def __str__(self) -> str:
        return f"{self.table}.{self.columns.embedding}"

    @property
    def rows(self) -> sql.Composable:
        return sql.SQL(ROWS).format(**self._names())

    @property
    def vector_rows(self) -> sql.Composable:
        return self.rows

    @property
    def text_query(self) -> str | None:
        return None

    @property
    def key_is_among(self) -> sql.Composable:
        return self.key.among("target", self.columns.fulltext_id)

    @property
    def written_columns(self) -> Sequence[str]:
        return (*self.key.names, self.columns.embedding)

    @property
    def rights(self) -> Sequence[Right]:
        return (Right("select"), Right("update", self.columns.embedding))

    @property
    def next_place(self) -> dict[str, Any]:
        return {"into_column": next_name(self.columns.embedding)}

    def check(self, connection: Connection) -> None:
        check_column(connection, self.table, self.columns.embedding, self.vector_type)

    def create(
        self, connection: Connection, codec: VectorCodec, *, dimensions: int, pipeline_name: str
    ) -> bool:
        """Add the column unless it is there; raises UsageError if it is of another type."""
        wanted = codec.type_name(connection, self.vector_type, dimensions)
        found = find_column(connection, self.table, self.columns.embedding)
        if found is not None and found.type != wanted:
            raise UsageError(
                f"column {self.columns.embedding} of {self.table} is of type {found.type}, and"
                f" these vectors are {wanted}; name another one with --into-column"
            )
        if found is None:
            self._add(connection, wanted, f"Vectors of pgembed pipeline {pipeline_name}.")
        return found is None

    def replace(
        self,
        connection: Connection,
        codec: VectorCodec,
        keys: Sequence[str],
        portions: Iterable[ChunkRows],
    ) -> dict[str, str]:
        """Update the rows of `keys`, each of which has one chunk, once each.

        Raises RecordFault when the text of one changes with that: it would never be done.
        """
        refused = dict.fromkeys(keys, NOT_TAKEN.format(self.table))
        for rows in portions:
            values = {
                "keys": list(rows.keys),
                "document_hashes": list(rows.document_hashes),
                "vectors": codec.pack(rows.vectors, self.vector_type),
            }
            query = sql.SQL(UPDATE).format(**self._names())
            for key, is_same in connection.execute(query, values):
                if not is_same:
                    raise RecordFault(TEXT_TOUCHED.format(self))
                refused.pop(key, None)
        return refused

    def clear(self, connection: Connection, keys: Sequence[str]) -> None:
        if keys:
            query = sql.SQL(CLEAR).format(**self._names())
            connection.execute(query, {"keys": list(keys)})

    def drop(self, connection: Connection) -> None:
        """Remove the column if `create` has added it; else leave it, empty."""
        if self.is_made:
            query = sql.SQL("alter table if exists {table} drop column if exists {embedding}")
        elif find_column(connection, self.table, self.columns.embedding) is not None:
            query = sql.SQL(CLEAR_ALL)
        else:
            return
        connection.execute(query.format(**self._names()))

    def _add(self, connection: Connection, type_name: str, comment: str) -> None:
        names = {
            **self._names(),
            "type": sql.SQL(type_name),
            "comment": sql.Literal(comment),
        }
        add = sql.SQL("alter table {table} add column {embedding} {type}")
        connection.execute(add.format(**names))
        describe = sql.SQL("comment on column {table}.{embedding} is {comment}")
        connection.execute(describe.format(**names))

    def _names(self) -> dict[str, sql.Composable]:
        source_key = (column.of("source") for column in self.key.columns)
        return {
            **column_names(self.columns),
            "table": self.table.identifier,
            "document": self.document.text("source"),
            "document_hash": self.document.hash("source"),
            "source_key": self.key.of("source"),
            "chunk_key": self.key.value(sql.SQL("chunk.key")),
            "key_is_among_keys": self.key.among("source", self.key.names),
            "key_as_fulltext_id": sql.SQL(", ").join(
                sql.SQL("{} as {}").format(column, sql.Identifier(name))
                for column, name in zip(source_key, self.columns.fulltext_id, strict=True)
            ),
        }
