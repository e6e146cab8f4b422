"""The bytes of a pipeline in the database, from the chunks of a sample: pure numbers.

It follows the table that target.chunk_table creates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from pgqueue_embed.db.pages import (
    ROW_HEADER_BYTES,
    TOAST_POINTER_BYTES,
    TOASTED_FROM_BYTES,
    Toasted,
    behind,
    btree_bytes,
    heap_bytes,
    hnsw_index_bytes,
)
from pgqueue_embed.estimation.text_sample import ChunkBytes
from pgqueue_embed.pipeline.columns import Column
from pgqueue_embed.target.chunk_table import ROW_BYTES
from pgqueue_embed.target.chunk_text import HASH_BYTES
from pgqueue_embed.vector_search.index_plan import (
    MAX_DIMENSIONS,
    element_bytes,
    element_type,
    hnsw_bytes,
    usual_m,
)

# Length and alignment of the types that a key can have; all others vary in length.
FIXED_TYPES = {
    "smallint": (2, 2),
    "integer": (4, 4),
    "bigint": (8, 8),
    "uuid": (16, 1),
    "date": (4, 4),
    "timestamp with time zone": (8, 8),
}

# Two loops write to two places of an index by the key, whose pages are parted in their middle then.
HALF_FULL = 0.7

# Compressed, English text takes about so much.
COMPRESSED_SHARE = 0.7

# Measured, with PostgreSQL 18: a record's row in the ledger with its indexes, beside its key twice.
LEDGER_BYTES = 250
# What is logged beside the row itself, for a row, for an entry of an index, and for the queue and
# the ledger of a record.
WAL_ROW_BYTES = 40
WAL_ENTRY_BYTES = 88
WAL_RECORD_BYTES = 470


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the rows of a table of chunks are like, whatever is in them.

    Of a partitioned one, `hashed` parts are equal; of parts by ranges, 0, one may have nearly all.
    Without `text` a hash stands in its place; without `ids` there are neither id nor chunk_id.
    """

    key: tuple[Column, ...]
    vector_type: str
    dimensions: int
    is_partitioned: bool = False
    hashed: int = 0
    text: bool = True
    ids: bool = True

    @property
    def has_one_key(self) -> bool:
        """Whether the number of a row has no index of its own."""
        return self.is_partitioned or not self.ids

    @property
    def vector_bytes(self) -> int:
        """Bytes of a vector, its header included."""
        return element_bytes(self.vector_type, self.dimensions)


@dataclass(frozen=True, kw_only=True)
class TableBytes:
    """Bytes of a table of chunks: the table itself, its indexes but that of vectors, and WAL."""

    table: int
    key_indexes: int
    wal: int


def table_bytes(layout: Layout, chunks: Sequence[ChunkBytes], count: int) -> TableBytes:
    """Return what `count` chunks take that are like the sample `chunks`."""
    if not chunks or not count:
        return TableBytes(table=0, key_indexes=0, wal=0)
    rows = [_row(layout, chunk) for chunk in chunks]
    outside = Toasted(
        values=sum(is_outside for _, is_outside in rows), value_bytes=layout.vector_bytes - 4
    )
    times = count / len(chunks)
    table = heap_bytes(length for length, _ in rows) + outside.table_bytes + outside.index_bytes
    key_bytes = _mean(chunk.key_bytes for chunk in chunks)
    indexes = 1 if layout.has_one_key else 2
    entries = indexes * len(rows) + outside.values * outside.parts
    logged_rows = len(rows) + outside.values * outside.parts
    wal = (
        sum(length for length, _ in rows)
        + outside.values * outside.value_bytes
        + logged_rows * WAL_ROW_BYTES
        + entries * WAL_ENTRY_BYTES
    )
    return TableBytes(
        table=int(table * times),
        key_indexes=_key_indexes(layout, key_bytes, count),
        wal=int(wal * times),
    )


def _mean(values: Iterator[int]) -> int:
    counted = list(values)
    return round(sum(counted) / len(counted))


def _row(layout: Layout, chunk: ChunkBytes) -> tuple[int, bool]:
    """Return the length of a chunk's row, and whether its vector is kept outside of it."""
    content_bytes = chunk.text_bytes if layout.text else HASH_BYTES
    text_bytes, vector_bytes = content_bytes, layout.vector_bytes
    length = _row_length(layout, chunk, text_bytes, vector_bytes)
    most = ROW_BYTES - ROW_HEADER_BYTES
    if length <= TOASTED_FROM_BYTES or length - ROW_HEADER_BYTES <= most:
        return length, False
    if vector_bytes <= most:
        text_bytes = int(text_bytes * COMPRESSED_SHARE) if layout.text else HASH_BYTES
        length = _row_length(layout, chunk, text_bytes, vector_bytes)
        if length - ROW_HEADER_BYTES <= most:
            return length, False
    return _row_length(layout, chunk, content_bytes, TOAST_POINTER_BYTES), True


def _row_length(layout: Layout, chunk: ChunkBytes, text_bytes: int, vector_bytes: int) -> int:
    length = ROW_HEADER_BYTES + (8 if layout.ids else 0)
    for column in layout.key:
        size, alignment = FIXED_TYPES.get(column.type, (chunk.key_bytes // len(layout.key), None))
        length = behind(length, value_bytes=size, alignment=alignment)
    if layout.ids:
        length = behind(length, value_bytes=chunk.key_bytes + 2, alignment=None)
    length = behind(length, value_bytes=4, alignment=4)
    length = behind(length, value_bytes=text_bytes, alignment=None)
    for _ in ("start_char", "end_char", "tokens"):
        length = behind(length, value_bytes=4, alignment=4)
    if vector_bytes == TOAST_POINTER_BYTES:
        length += vector_bytes
    else:
        length = behind(length, value_bytes=vector_bytes - 4, alignment=None)
    length = behind(length, value_bytes=8, alignment=8)
    return length + chunk.copied_bytes


def _key_indexes(layout: Layout, key_bytes: int, count: int) -> int:
    key = 0
    for column in layout.key:
        size, alignment = FIXED_TYPES.get(column.type, (key_bytes // len(layout.key), None))
        key = behind(key, value_bytes=size, alignment=alignment)
    of_key = btree_bytes(count, key_bytes=behind(key, value_bytes=4, alignment=4), full=HALF_FULL)
    return of_key if layout.has_one_key else btree_bytes(count, key_bytes=8) + of_key


@dataclass(frozen=True, kw_only=True)
class IndexBytes:
    """Bytes of an HNSW index, and of the memory in which it is built."""

    index: int
    memory: int


def index_bytes(layout: Layout, count: int, *, quantize: str) -> IndexBytes | None:
    """Return what an HNSW index of `count` vectors takes; None for too many dimensions.

    `quantize` is none, halfvec or binary.
    """
    element = element_type(layout.vector_type, quantize)
    if layout.dimensions > MAX_DIMENSIONS[element]:
        return None
    vector_bytes = element_bytes(element, layout.dimensions)
    m = usual_m(vector_bytes)
    return IndexBytes(
        index=hnsw_index_bytes(count, vector_bytes=vector_bytes, m=m),
        memory=hnsw_bytes(ceil(count / max(1, layout.hashed)), vector_bytes, m),
    )


def logged_bytes(records: int) -> int:
    """Return what is logged of so many records in the queue and the ledger."""
    return records * WAL_RECORD_BYTES


def ledger_bytes(records: int, key_bytes: int) -> int:
    """Return what the ledger of so many records takes, its indexes included."""
    return records * (LEDGER_BYTES + 2 * key_bytes)
