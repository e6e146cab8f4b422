"""A hit of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A chunk that answers a query; `score` is the cosine similarity, -1 to 1.

    `key` is the record's in its own type, as psycopg reads it: an int, str, UUID, date or datetime,
    of several columns a tuple. `key_text` is its text, as in pgembed.dead_letters and in JSON.
    `chunk` is verbatim: the document's characters from `start_char` up to `end_char`; None where no
    texts are stored, and the record has another one there by now. In a table that is being adopted,
    a chunk that was not found right yet may have no index and offsets.
    `columns` are those that were asked for. Where a record was to be found once, `matched` counts
    its chunks that reach the threshold. `rerank_score` is that of a re-ranking model, on a scale of
    its own, if it has read the chunk. Of a hybrid search, `hybrid_score` is what orders hits, 0 to
    1: 1 is the first by words and by vectors.
    """

    key: Any
    key_text: str
    score: float
    chunk_index: int | None
    start_char: int | None
    end_char: int | None
    chunk: str | None
    columns: Mapping[str, Any] = field(default_factory=dict)
    matched: int | None = None
    rerank_score: float | None = None
    hybrid_score: float | None = None


@dataclass(frozen=True, kw_only=True)
class HitWithVector(Hit):
    """A hit that is compared with others by its vector, as pgvector writes it."""

    vector: str
