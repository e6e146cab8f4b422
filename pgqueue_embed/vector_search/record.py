"""One record as it is stored: its chunks, and the text that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.steps import run
from pgqueue_embed.errors import PipelineFault
from pgqueue_embed.pipeline.canonical_keys import canonical_keys
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.target import target_of
from pgqueue_embed.vector_search.query import check_present
from pgqueue_embed.vector_search.reading import reading_chunks
from pgqueue_embed.vector_search.rights import naming_missing_rights

# Of a long document this is the beginning.
MOST_CHUNKS = 1_000

READ = """
select chunk_index, start_char, end_char, text
from (
    select
        target.{chunk_index} as chunk_index,
        target.{start_char} as start_char,
        target.{end_char} as end_char,
        target.{text} as text
    from {rows} as target
    where {key} = {wanted}
) as chunk
order by chunk_index, start_char
limit %(limit)s
"""


@dataclass(frozen=True, kw_only=True)
class StoredChunk:
    """A chunk as it is stored; one that is being adopted may have no index and offsets yet.

    `chunk` is None where no texts are stored, and the record has another one there by now.
    """

    chunk_index: int | None
    start_char: int | None
    end_char: int | None
    chunk: str | None


def read_record(connection: Connection, pipeline: Pipeline, key: str) -> list[StoredChunk]:
    """Return the stored chunks of a record in order; none without it.

    Of more than MOST_CHUNKS, one more than these. `key` is as in a hit. Raises UsageError for what
    can be no key, PipelineFault where the target may not be read, and PipelineReplaced where
    another generation has replaced it.
    """
    columns = pipeline.spec.columns
    query = sql.SQL(READ).format(
        chunk_index=sql.Identifier(columns.chunk_index),
        start_char=sql.Identifier(columns.start_char),
        end_char=sql.Identifier(columns.end_char),
        text=sql.Identifier(columns.text_chunk),
        rows=target_of(pipeline).rows,
        key=pipeline.key.of("target", columns.fulltext_id),
        wanted=pipeline.key.value(sql.SQL("%(key)s::text")),
    )
    with naming_missing_rights(connection):
        [wanted] = run(connection, canonical_keys(pipeline, [key]))
    try:
        with reading_chunks(connection, pipeline, "reading its chunks"):
            rows = connection.execute(query, {"key": wanted, "limit": MOST_CHUNKS + 1}).fetchall()
            run(connection, check_present(pipeline))
    except PipelineFault:
        run(connection, check_present(pipeline))
        raise
    names = ("chunk_index", "start_char", "end_char", "chunk")
    return [StoredChunk(**dict(zip(names, row, strict=True))) for row in rows]


def joined(chunks: Sequence[StoredChunk]) -> str:
    """Return the text that chunks are of, what overlaps once; a gap, of white space, is a line.

    A chunk whose text is not to be had is a gap, too.
    """
    text, end = "", 0
    for chunk in chunks:
        if chunk.chunk is None:
            continue
        start = end if chunk.start_char is None else chunk.start_char
        gap = "\n" if text and (start > end or chunk.start_char is None) else ""
        text += gap + chunk.chunk[max(0, end - start) :]
        end = max(end, start + len(chunk.chunk) if chunk.end_char is None else chunk.end_char)
    return text
