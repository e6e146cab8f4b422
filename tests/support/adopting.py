"""Tables of vectors that pgembed has not made, and their adoption with the fake model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import sql
from tokenizers import Tokenizer

from pgqueue_embed.adopt import adopt_records, attach_table, ensure_key_index
from pgqueue_embed.adopt.candidate import Candidate, check_adoptable
from pgqueue_embed.chunking import Chunk
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.pipeline.spec_checks import checked
from pgqueue_embed.queue.adoptions import Counts
from tests.support.fakes import DIMENSIONS, FAKE_MODEL, tokenizer, unit_vector

VECTORS = Table(schema="public", name="vectors")

# A stored chunk: key, text, and a vector, None for that of the fake model.
Row = tuple[object, str, NDArray[np.float32] | None]


class FakeModel:
    """Fulfils candidate.ReferenceModel with the vectors of `unit_vector`."""

    content_budget = 254

    @property
    def tokenizer(self) -> Tokenizer:
        """That of the bundled model."""
        return tokenizer()

    def forward(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Return a vector for each text."""
        return np.array([unit_vector(chunk.text) for chunk in chunks], np.float32)


def make_vectors(
    connection: Connection,
    rows: Sequence[Row],
    *,
    columns: str = "fulltext_id bigint not null, text_chunk text not null",
    vector: str = f"vector({DIMENSIONS})",
    names: tuple[str, str, str] = ("fulltext_id", "text_chunk", "embedding"),
    table: Table = VECTORS,
) -> Table:
    """Create a table with `columns` and one of vectors, and put `rows` into it."""
    connection.execute(
        sql.SQL("create table {} ({}, {} public.{})").format(
            table.identifier, sql.SQL(columns), sql.Identifier(names[2]), sql.SQL(vector)
        )
    )
    insert = sql.SQL("insert into {} ({}) values (%s, %s, %s::public.{})").format(
        table.identifier, sql.SQL(", ").join(map(sql.Identifier, names)), sql.SQL(vector)
    )
    with connection.cursor() as cursor:
        cursor.executemany(insert, [(key, text, _vector(text, own)) for key, text, own in rows])
    return table


def _vector(text: str, own: NDArray[np.float32] | None) -> str:
    vector = unit_vector(text) if own is None else own
    return "[" + ",".join(map(repr, map(float, vector))) + "]"


def candidate_of(connection: Connection, source: Table, **fields: Any) -> Candidate:
    """Return `VECTORS` as a candidate for a pipeline over `source`, with small chunks."""
    defaults: dict[str, Any] = {
        "name": "reports",
        "target": VECTORS,
        "text_fields": ("body",),
        "chunk_tokens": 16,
        "overlap_tokens": 4,
    }
    spec = checked(PipelineSpec(source=source, **{**defaults, **fields}))
    shape, table = check_adoptable(connection, spec)
    return Candidate(
        spec=replace(spec, vector_type=table.vector_type),
        shape=shape,
        table=table,
        identity=FAKE_MODEL,
        model=FakeModel(),
    )


def adopt(
    connection: Connection,
    source: Table,
    *,
    doubtful: Sequence[str] = (),
    on_slice: Callable[[Any], None] = lambda _: None,
    **fields: Any,
) -> tuple[Pipeline, Counts]:
    """Adopt `VECTORS` without a comparison."""
    candidate = candidate_of(connection, source, **fields)
    pipeline = attach_table(connection, candidate, doubtful)
    ensure_key_index(connection, pipeline)
    return pipeline, adopt_records(connection, pipeline, candidate.judge(), on_slice=on_slice)
