"""A target of its own: a table with a row a chunk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg import sql

from pgqueue_embed.db.names import Table, next_name, quoted
from pgqueue_embed.db.packed import pack_integers
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.columns import raw
from pgqueue_embed.pipeline.document import Document
from pgqueue_embed.pipeline.key import Key
from pgqueue_embed.pipeline.partitioning import Partitioning
from pgqueue_embed.pipeline.target_columns import TargetColumns
from pgqueue_embed.target import parts
from pgqueue_embed.target.chunk_text import HASH_BYTES, ChunkText, hash_of_text
from pgqueue_embed.target.chunk_view import View
from pgqueue_embed.target.chunks import ChunkRows, Right, column_names

if TYPE_CHECKING:
    from pgqueue_embed.db.vectors import VectorCodec

# A row of up to half a page stays as it is. PostgreSQL's own limit is 2 kB, which 384 dimensions
# with a text pass: their vectors are put elsewhere, and an exact search, which fetches them one by
# one, takes three times as long (python -m benchmarks --only search).
ROW_BYTES = 4_080

# A chunk's id is made of its key and its number, which have an index; it has none by itself. A key
# that a foreign key changes leaves it behind until the record is written anew: another record may
# have the old key by then, so that it is not unique by itself. The content is the text, or a hash.
CREATE = """
create table {target} (
    {id_definition}
    {key_definitions},
    {chunk_id_definition}
    {chunk_index} integer not null,
    {content} {content_type} not null,
    {start_char} integer not null,
    {end_char} integer not null,
    {tokens} integer not null,
    {embedding} {vector_type} not null,
    {created_at} timestamptz not null default clock_timestamp(),
    {keys}
    {others}
) {storage}
"""
ID = "{id} bigint generated always as identity,"
CHUNK_ID = "{chunk_id} text not null,"
KEYS = "primary key ({id}), unique ({fulltext_id}, {chunk_index})"
STORAGE = "with (toast_tuple_target = {row_bytes})"

# No row of a partitioned table is unique by anything that it is not parted by.
KEY_ALONE = "primary key ({fulltext_id}, {chunk_index})"

# A key that changes takes its chunks along, so that the source's writers are never refused.
FOREIGN_KEY = """
constraint {name} foreign key ({fulltext_id}) references {source} ({source_columns})
    on delete cascade on update cascade
"""
FOREIGN_KEY_NAME = "record_is_in_source"

CHUNK_ID_VALUE = "pgembed.ledger_key(chunk.key) || '_' || chunk_index"

DELETE = "delete from {target} as target where {key_is_among}"

INSERT = """
insert into {target}
    ({fulltext_id}, {chunk_index}, {content},
    {start_char}, {end_char}, {tokens}, {embedding} {and_other_names})
select
    {key_values}, chunk_index, content,
    start_char, end_char, tokens, embedding {and_other_values}
from unnest(
    %(keys)b::text[], %(chunk_indexes)b::integer[], %(contents)b::{content_type}[],
    %(start_chars)b::integer[], %(end_chars)b::integer[], %(tokens)b::integer[], %(vectors)b
) as chunk (key, chunk_index, content, start_char, end_char, tokens, embedding)
{join_copied}
"""

# A value is copied as it stands in the one moment in which the record's hash, of which it is a
# part, is found to be the one that was compared: no other value can be written under that hash. A
# record that has changed or gone since the re-check is not written at all.
COPY_AND_INSERT = """
with copied as materialized (
    select listed.key as copied_key, {copied_columns}
    from (
        select distinct key, document_hash
        from unnest(%(keys)b::text[], %(document_hashes)b::bytea[]) as given (key, document_hash)
    ) as listed
    join {source} as source
        on {source_key} = {listed_key} and {document_hash} = listed.document_hash
),
inserted as (
    {insert}
    returning true
)
select copied_key, (select count(*) from inserted) from copied
"""
COUNT = """
select {key_text}, count(*)
from {target} as target
where {key_is_among}
group by 1
"""

NOT_TAKEN = "the table has not kept all of its chunks: a trigger or a rule lets rows vanish"
MOVED_ON = "the record changed while it was written"


def whose(connection: Connection, table: Table) -> str:
    """Return whose a table is that is there, and what to do instead of dropping it."""
    row = connection.execute(
        "select name from pgembed.pipelines where target_schema = %s and target_table = %s",
        (table.schema, table.name),
    ).fetchone()
    if row is not None:
        return f", for the vectors of pipeline '{row[0]}'; name another with --target-table"
    return (
        " and is of no pipeline; name another with --target-table or, if it has vectors of this"
        " source, let pgembed go on with it: pgembed adopt, with the same options"
    )


@dataclass(frozen=True, kw_only=True)
class ChunkTable:
    """A table of chunks, made by `create`, that refers to the source by its key; see Target.

    Where it stores no texts, `text` reads them.
    """

    table: Table
    columns: TargetColumns
    vector_type: str
    key: Key
    source: Table
    document: Document
    foreign_key: bool = False
    text: ChunkText | None = None
    views: tuple[View, ...] = ()
    ids: bool = True
    partitioning: Partitioning | None = None

    def __str__(self) -> str:
        return str(self.table)

    @property
    def rows(self) -> sql.Composable:
        return self.table.identifier if self.text is None else self.text.rows(self.table)

    @property
    def vector_rows(self) -> sql.Composable:
        return self.table.identifier

    @property
    def text_query(self) -> str | None:
        return None if self.text is None else raw(self.text.query)

    @property
    def key_is_among(self) -> sql.Composable:
        if self.partitioning is None:
            return self.key.among("target", self.columns.fulltext_id)
        return self.key.looked_up("target", self.columns.fulltext_id)

    @property
    def written_columns(self) -> Sequence[str]:
        unread = (self.columns.id, self.columns.created_at)
        columns = self.columns.of_table(text=self.text is None, ids=self.ids)
        own = [name for name in columns if name not in unread]
        return [*own, *(column.name for column in self.document.copied)]

    @property
    def rights(self) -> Sequence[Right]:
        return (Right("select"), Right("insert"), Right("delete"))

    @property
    def next_place(self) -> dict[str, Any]:
        table = Table(schema=self.table.schema, name=next_name(self.table.name))
        return {"target": table, "view": False}

    def check(self, connection: Connection) -> None:
        schema = quoted(self.table.schema)
        row = connection.execute(
            "select to_regclass(%s), to_regnamespace(%s)", (self.table.quoted, schema)
        ).fetchone()
        there, schema_there = row or (None, None)
        if there is not None:
            raise UsageError(f"table {self.table} exists already{whose(connection, self.table)}")
        if schema_there is None:
            raise UsageError(
                f"there is no schema {self.table.schema}; create it: create schema {schema}"
            )
        if self.partitioning is not None:
            parts.check(connection, self.table, self.partitioning, self.key)
        for view in self.views:
            view.check(connection)

    def create(
        self, connection: Connection, codec: VectorCodec, *, dimensions: int, pipeline_name: str
    ) -> bool:
        """Create the table with its indexes, and comments on it."""
        type_name = codec.type_name(connection, self.vector_type, dimensions)
        others = _listed_after(self._other_definitions())
        names = {**self._names(), "vector_type": sql.SQL(type_name), "others": others}
        storage = sql.SQL(STORAGE).format(row_bytes=ROW_BYTES)
        has_one_key = self.partitioning is not None or not self.ids
        keys = sql.SQL(KEY_ALONE if has_one_key else KEYS).format(**names)
        if self.partitioning is None:
            connection.execute(sql.SQL(CREATE).format(**names, keys=keys, storage=storage))
        else:
            method = parts.method(self.partitioning, self.key, self.columns)
            connection.execute(sql.SQL(CREATE).format(**names, keys=keys, storage=method))
            parts.create(connection, self.table, self.partitioning, storage)
        comment = f"Chunks and vectors of pgembed pipeline {pipeline_name}."
        connection.execute(
            sql.SQL("comment on table {target} is {comment}").format(**names, comment=comment)
        )
        for column, said in self._comments():
            connection.execute(
                sql.SQL("comment on column {target}.{column} is {comment}").format(
                    **names, column=sql.Identifier(column), comment=said
                )
            )
        for view in self.views:
            view.create(connection)
        return True

    def _comments(self) -> Iterator[tuple[str, str]]:
        """Yield the columns that are not obvious, with what is in them."""
        first = "Offset of the chunk's first character in the document, counted from 0."
        yield self.columns.start_char, first
        if self.text is not None:
            yield (
                self.columns.text_hash,
                f"First {HASH_BYTES} bytes of the SHA-256 of the chunk's text, in UTF-8.",
            )
        for column in self.document.copied:
            yield column.name, f"Copied from {self.source} when the record is embedded."

    def replace(
        self,
        connection: Connection,
        codec: VectorCodec,
        keys: Sequence[str],
        portions: Iterable[ChunkRows],
    ) -> dict[str, str]:
        """Delete what is there unconditionally, and insert.

        A table takes all or raises, but for records that have changed just now, if columns are
        copied, and for those of which a trigger or rule lets chunks vanish; these are left without
        any chunk.
        """
        self.clear(connection, keys)
        refused: dict[str, str] = {}
        sent: Counter[str] = Counter()
        inserted = 0
        for rows in portions:
            current, number = self.insert(connection, codec, rows)
            refused |= dict.fromkeys(set(rows.keys) - current, MOVED_ON)
            sent.update(key for key in rows.keys if key in current)
            inserted += number
        if inserted < sent.total():
            refused |= dict.fromkeys(self._not_taken(connection, sent), NOT_TAKEN)
        self.clear(connection, list(refused))
        return refused

    def _not_taken(self, connection: Connection, sent: Counter[str]) -> list[str]:
        """Return the records of which the table lacks chunks that it was sent without an error.

        By what there is to be seen: a trigger may put rows elsewhere, such as into an heir.
        """
        query = sql.SQL(COUNT).format(
            **self._names(), key_text=self.key.text("target", self.columns.fulltext_id)
        )
        there = dict(connection.execute(query, {"keys": list(sent)}).fetchall())
        return [key for key, number in sent.items() if there.get(key, 0) < number]

    def clear(self, connection: Connection, keys: Sequence[str]) -> None:
        if keys:
            query = sql.SQL(DELETE).format(**self._names())
            connection.execute(query, {"keys": list(keys)})

    def insert(
        self, connection: Connection, codec: VectorCodec, rows: ChunkRows
    ) -> tuple[set[str], int]:
        """Insert `rows` by one statement over binary arrays.

        Returns the keys of the records that are as they were, and how many rows the table took.

        Not COPY: a client that stops inside COPY FROM STDIN switches every server timeout off and
        holds its claim for ever.
        """
        values = {
            "keys": list(rows.keys),
            "chunk_indexes": pack_integers(rows.chunk_indexes),
            "contents": self._contents(rows.texts),
            "start_chars": pack_integers(rows.start_chars),
            "end_chars": pack_integers(rows.end_chars),
            "tokens": pack_integers(rows.tokens),
            "vectors": codec.pack(rows.vectors, self.vector_type),
        }
        names = self._names()
        insert = sql.SQL(INSERT).format(**names)
        if not self.document.copied:
            return set(rows.keys), connection.execute(insert, values).rowcount
        values["document_hashes"] = list(rows.document_hashes)
        query = sql.SQL(COPY_AND_INSERT).format(**names, insert=insert)
        found = connection.execute(query, values).fetchall()
        return {key for key, _ in found}, found[0][1] if found else 0

    def _contents(self, texts: Sequence[str]) -> Sequence[str | bytes]:
        return list(texts) if self.text is None else list(map(hash_of_text, texts))

    def drop(self, connection: Connection) -> None:
        for view in self.views:
            view.drop(connection)
        connection.execute(sql.SQL("drop table if exists {target}").format(**self._names()))

    def _other_definitions(self) -> Iterator[sql.Composable]:
        """Yield what follows the usual columns: those that are copied, and the foreign key."""
        for column in self.document.copied:
            name = sql.Identifier(column.name)
            yield sql.SQL("{} {}").format(name, sql.SQL(column.unlimited_type))
        if self.foreign_key:
            yield sql.SQL(FOREIGN_KEY).format(
                name=sql.Identifier(FOREIGN_KEY_NAME),
                source_columns=sql.SQL(", ").join(map(sql.Identifier, self.key.names)),
                **{each: self._names()[each] for each in ("fulltext_id", "source")},
            )

    def _names(self) -> dict[str, sql.Composable]:
        definitions = (
            sql.SQL("{} {} not null").format(sql.Identifier(name), sql.SQL(column.type))
            for name, column in zip(self.columns.fulltext_id, self.key.columns, strict=True)
        )
        copied = [
            (sql.Identifier(column.name), sql.Identifier(f"copy_{number}"), column.of("source"))
            for number, column in enumerate(self.document.copied)
        ]
        columns = column_names(self.columns)
        ids = [columns["chunk_id"]] if self.ids else []
        return {
            **columns,
            "id_definition": sql.SQL(ID if self.ids else "").format(**columns),
            "chunk_id_definition": sql.SQL(CHUNK_ID if self.ids else "").format(**columns),
            "content": columns["text_chunk" if self.text is None else "text_hash"],
            "content_type": sql.SQL("text" if self.text is None else "bytea"),
            "target": self.table.identifier,
            "key_definitions": sql.SQL(",\n    ").join(definitions),
            "key_is_among": self.key_is_among,
            "source": self.source.identifier,
            "source_key": self.key.of("source"),
            "listed_key": self.key.value(sql.SQL("listed.key")),
            "document_hash": self.document.hash("source"),
            "copied_columns": sql.SQL(", ").join(
                sql.SQL("{} as {}").format(value, position) for _, position, value in copied
            ),
            "and_other_names": _listed_after([*ids, *(name for name, _, _ in copied)]),
            "and_other_values": _listed_after(
                [sql.SQL(CHUNK_ID_VALUE) for _ in ids] + [position for _, position, _ in copied]
            ),
            "join_copied": sql.SQL("join copied on copied_key = chunk.key" if copied else ""),
            "key_values": sql.SQL(", ").join(self.key.values(sql.SQL("chunk.key"))),
        }


def _listed_after(items: Iterable[sql.Composable]) -> sql.Composable:
    """Return `items` as they follow others in a list: each with a comma before it."""
    return sql.Composed([part for item in items for part in (sql.SQL(", "), item)])
