"""Pipelines that write into a column of their source, and whether its vectors are true."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from psycopg import sql

from pgqueue_embed.chunking import Chunker
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from tests.support.fakes import DIMENSIONS, tokenizer, unit_vector
from tests.support.oracle import assert_converged
from tests.support.pipelines import REPORTS, make_pipeline


@cache
def whole_chunker() -> Chunker:
    """Return a chunker that takes a document as one chunk, of up to 200 tokens."""
    return Chunker(tokenizer(), max_tokens=200, overlap_tokens=0, whole=True)


def into_column(
    connection: Connection, source: Table = REPORTS, column: str = "embedding", **fields: Any
) -> Pipeline:
    """Create a pipeline from `source` into a column of it; see `make_pipeline`."""
    usual = {"chunking": "none", "chunk_tokens": 200, "overlap_tokens": 0}
    return make_pipeline(
        connection, source, **{**usual, "target": source, "into_column": column, **fields}
    )


def assert_column_converged(
    connection: Connection, pipeline: Pipeline, dimensions: int = DIMENSIONS
) -> None:
    """Fail unless the oracle is content, and each vector is that of the text beside it."""
    assert_converged(connection, pipeline.name)
    query = sql.SQL("select {}, {}::text from {} where {} is not null").format(
        sql.Identifier(pipeline.document.recipe.text_fields[0]),
        sql.Identifier(pipeline.spec.columns.embedding),
        pipeline.source.identifier,
        sql.Identifier(pipeline.spec.columns.embedding),
    )
    for text, vector in connection.execute(query):
        stored = np.array([float(each) for each in vector.strip("[]").split(",")])
        assert np.allclose(stored, unit_vector(text.strip(), dimensions), atol=1e-3), text
