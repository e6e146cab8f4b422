"""Filling in what pgembed keeps of a chunk, in the rows that are adopted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from psycopg import sql

from pgqueue_embed.adopt.judge import Placed
from pgqueue_embed.adopt.stored_chunks import ctid_of, read_vectors, table_names
from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.vectors import VectorCodec
from pgqueue_embed.embedding.rows import unit_rows
from pgqueue_embed.pipeline.pipeline import Pipeline

VERSIONS = """
select {target_key_text}, array_agg({version})
from {target} as target
where {key_is_among_keys}
group by 1
"""


def versions_of(
    connection: Connection, pipeline: Pipeline, keys: Sequence[str]
) -> dict[str, set[str]]:
    """Return the versions of the rows of the records `keys`, for those that have some."""
    query = sql.SQL(VERSIONS).format(**table_names(connection, pipeline))
    rows = connection.execute(query, {"keys": list(keys)}).fetchall()
    return {key: set(versions) for key, versions in rows}


# A chunk id of the user's stays: others may know the chunk by it. A row that has everything is not
# written again, which would double a table that pgembed itself has made.
FILL = """
update {target} as target
set {chunk_id} = coalesce(
        target.{chunk_id}, pgembed.ledger_key(placed.key) || '_' || placed.chunk_index
    ),
    {chunk_index} = placed.chunk_index,
    {text_chunk} = coalesce(placed.text_chunk, target.{text_chunk}),
    {start_char} = placed.start_char,
    {end_char} = placed.end_char,
    {tokens} = placed.tokens
    {vector}
from unnest(
    %(places)s::tid[], %(keys)s::text[], %(indexes)s::integer[], %(texts)s::text[],
    %(starts)s::integer[], %(ends)s::integer[], %(tokens)s::integer[] {vectors}
) as placed (place, key, chunk_index, text_chunk, start_char, end_char, tokens {column})
where target.ctid = placed.place
    and (
        {always}
        or target.{chunk_id} is null
        or placed.text_chunk is not null
        or (target.{chunk_index}, target.{start_char}, target.{end_char}, target.{tokens})
            is distinct from
            (placed.chunk_index, placed.start_char, placed.end_char, placed.tokens)
    )
"""


def fill(
    connection: Connection, pipeline: Pipeline, placed: Mapping[str, Sequence[Placed]]
) -> None:
    """Fill in index, offsets, tokens and chunk id of the chunks `placed`, by key of the record.

    A text that is spelt otherwise than the document becomes the document's slice, and a vector of
    another length than 1 gets length 1. To be called with the records locked.
    """
    rows = [(key, each) for key, chunks in placed.items() for each in chunks]
    _fill(connection, pipeline, [row for row in rows if row[1].stored.has_unit_norm])
    others = [row for row in rows if not row[1].stored.has_unit_norm]
    _fill(connection, pipeline, others, with_vectors=True)


def _fill(
    connection: Connection,
    pipeline: Pipeline,
    rows: Sequence[tuple[str, Placed]],
    *,
    with_vectors: bool = False,
) -> None:
    if not rows:
        return
    names = table_names(connection, pipeline)
    parts = {
        "vector": sql.SQL(", {embedding} = placed.embedding").format(**names),
        "vectors": sql.SQL(", %(vectors)b"),
        "column": sql.SQL(", embedding"),
    }
    query = sql.SQL(FILL).format(
        **names,
        **(parts if with_vectors else dict.fromkeys(parts, sql.SQL(""))),
        always=sql.Literal(with_vectors),
    )
    values = _values(rows)
    if with_vectors:
        versions = [each.stored.version for _, each in rows]
        vectors = unit_rows(read_vectors(connection, pipeline, versions))
        values["vectors"] = VectorCodec(connection).pack(vectors, pipeline.spec.vector_type)
    connection.execute(query, values)


def _values(rows: Sequence[tuple[str, Placed]]) -> dict[str, object]:
    chunks = [each.chunk for _, each in rows]
    return {
        "places": [ctid_of(each.stored.version) for _, each in rows],
        "keys": [key for key, _ in rows],
        "indexes": [chunk.index for chunk in chunks],
        "texts": [
            None if each.chunk.text == each.stored.text else each.chunk.text for _, each in rows
        ],
        "starts": [chunk.start for chunk in chunks],
        "ends": [chunk.end for chunk in chunks],
        "tokens": [len(chunk.token_ids) for chunk in chunks],
    }
