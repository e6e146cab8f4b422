"""The bytes of rows and index entries on PostgreSQL's pages: pure numbers.

PostgreSQL docs, "Database Page Layout" and "TOAST"; pages of 8 kB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PAGE_BYTES = 8_192
PAGE_HEADER_BYTES = 24
LINE_POINTER_BYTES = 4
ROW_HEADER_BYTES = 24
USABLE_BYTES = PAGE_BYTES - PAGE_HEADER_BYTES

# A value of up to so many bytes has a header of one byte, and is not aligned.
MOST_SHORT_BYTES = 126

# A row above this is looked at; it stays whole up to the table's toast_tuple_target.
TOASTED_FROM_BYTES = 2_032
TOAST_CHUNK_BYTES = 1_996
TOAST_POINTER_BYTES = 18

# What is left on a page counts in steps of 1/256, and a new row looks at few of such pages.
FREE_SPACE_STEP_BYTES = PAGE_BYTES // 256


def aligned(length: int, to: int = 8) -> int:
    """Return `length` rounded up to a multiple of `to`."""
    return -(-length // to) * to


def behind(length: int, *, value_bytes: int, alignment: int | None) -> int:
    """Return the length of a row with one more value; without `alignment`, of varying length."""
    if alignment is not None:
        return aligned(length, alignment) + value_bytes
    if value_bytes <= MOST_SHORT_BYTES:
        return length + 1 + value_bytes
    return aligned(length, 4) + 4 + value_bytes


def heap_bytes(row_lengths: Iterable[int]) -> int:
    """Return the bytes of the pages that rows of these lengths fill, written in this order.

    A row goes to the page that is being filled, else to any that has room, else to a new one.
    """
    pages = 0
    room = 0
    # Pages that are done, by the steps of room that they have left.
    left: dict[int, int] = {}
    for length in row_lengths:
        need = aligned(length) + LINE_POINTER_BYTES
        if need > room:
            left[room // FREE_SPACE_STEP_BYTES] = left.get(room // FREE_SPACE_STEP_BYTES, 0) + 1
            room = _page_with_room(left, need)
            if not room:
                pages += 1
                room = USABLE_BYTES
        room -= need
    return pages * PAGE_BYTES


def _page_with_room(left: dict[int, int], need: int) -> int:
    """Take a page with room for `need` bytes out of those that are `left`; 0 if there is none."""
    fitting = [step for step in left if step * FREE_SPACE_STEP_BYTES >= need]
    if not fitting:
        return 0
    step = min(fitting)
    left[step] -= 1
    if not left[step]:
        del left[step]
    return step * FREE_SPACE_STEP_BYTES


@dataclass(frozen=True, kw_only=True)
class Toasted:
    """Values that are kept outside of their rows: so many, each of `value_bytes`."""

    values: int
    value_bytes: int

    @property
    def table_bytes(self) -> int:
        """Bytes of the pages with the parts of the values."""
        lengths = list(self._parts())
        return heap_bytes(length for _ in range(self.values) for length in lengths)

    @property
    def index_bytes(self) -> int:
        """Bytes of the index of the parts."""
        return btree_bytes(self.values * self.parts, key_bytes=8)

    @property
    def parts(self) -> int:
        """Rows for each value."""
        return len(list(self._parts()))

    def _parts(self) -> Iterator[int]:
        for start in range(0, self.value_bytes, TOAST_CHUNK_BYTES):
            part = min(TOAST_CHUNK_BYTES, self.value_bytes - start)
            yield behind(ROW_HEADER_BYTES + 8, value_bytes=part, alignment=None)


def btree_bytes(entries: int, *, key_bytes: int, full: float = 0.9) -> int:
    """Return the bytes of a b-tree whose leaves are `full`: 0.9 where keys come in their order."""
    entry = aligned(8 + key_bytes) + LINE_POINTER_BYTES
    a_page = int((USABLE_BYTES - 16) * full / entry)
    leaves = -(-entries // a_page)
    inner = -(-leaves // a_page) if leaves > 1 else 0
    return (1 + leaves + inner) * PAGE_BYTES


# pgvector src/hnsw.h: HnswElementTupleData before the vector, and a neighbour's address.
ELEMENT_BYTES = 72
NEIGHBOUR_BYTES = 6
HNSW_USABLE_BYTES = USABLE_BYTES - 8


def hnsw_index_bytes(vectors: int, *, vector_bytes: int, m: int) -> int:
    """Return the bytes of an HNSW index of so many vectors, all of them different."""
    a_page = hnsw_vectors_a_page(vector_bytes, m)
    if not a_page:
        return vectors * 2 * PAGE_BYTES
    return (1 + -(-vectors // a_page)) * PAGE_BYTES


def hnsw_vectors_a_page(vector_bytes: int, m: int) -> int:
    """Return how many vectors a page of an HNSW index has; 0 where two pages have one.

    pgvector src/hnswbuild.c: a vector and its neighbours share a page, unless they do not fit one.
    A vector is on 1 / (m - 1) layers above the lowest, on the average.
    """
    element = aligned(ELEMENT_BYTES + vector_bytes) + LINE_POINTER_BYTES
    places = (2 + 1 / (m - 1)) * m
    neighbours = aligned(int(4 + places * NEIGHBOUR_BYTES)) + LINE_POINTER_BYTES
    return HNSW_USABLE_BYTES // (element + neighbours)
