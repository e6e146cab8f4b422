"""Fifteen hundred chunks whose vectors lie as those of texts do, of more than a few dimensions."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from tests.support.pipelines import make_pipeline

ROWS = 1_500
DIMENSIONS = 128

SOURCE = """
create table public.reports as
select n as id, 'text of ' || n as body, n %% 50 as kind from generate_series(1, %s) as n
"""
FILL = """
insert into {target} (fulltext_id, chunk_id, chunk_index, text_chunk, start_char, end_char, tokens,
    embedding)
select position, position::text, 0, 'text', 0, 4, 1, vector::text::{type}
from json_array_elements(%s) with ordinality as listed (vector, position)
"""


def directions(count: int, seed: int) -> NDArray[np.float32]:
    """Return unit vectors around forty centres, as texts of some subjects have them."""
    centres = np.random.default_rng(0).standard_normal((40, DIMENSIONS))
    random = np.random.default_rng(seed)
    found = centres[random.integers(40, size=count)] + random.standard_normal((count, DIMENSIONS))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


VECTORS = directions(ROWS, 1)
QUERIES = directions(3, 2)


def fill(
    connection: Connection,
    vector_type: str = "vector",
    partition_by: str | None = None,
    vectors: NDArray[np.float32] = VECTORS,
) -> Pipeline:
    """Make pipeline reports with ROWS vectors, of ids from 1."""
    connection.execute(SOURCE, (ROWS,))
    connection.execute("alter table public.reports add primary key (id)")
    pipeline = make_pipeline(
        connection, dimensions=DIMENSIONS, vector_type=vector_type, partition_by=partition_by
    )
    statement = sql.SQL(FILL).format(
        target=pipeline.target.identifier, type=sql.Identifier("public", vector_type)
    )
    connection.execute(statement, (json.dumps(vectors.tolist()),))
    connection.execute("analyze")
    return pipeline
