"""Semantic search in a pipeline's vectors: the query's vector, and the chunks nearest to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from pgqueue_embed.db.extension import VectorExtension, vector_extension
from pgqueue_embed.db.faults import on_users_tables
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import (
    PipelineFault,
    PipelineReplaced,
    UntrustedCode,
    UsageError,
)
from pgqueue_embed.pipeline.catalog import is_current
from pgqueue_embed.pipeline.option import check_count, check_type
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.source.trust import trusting
from pgqueue_embed.target import column_names, target_of
from pgqueue_embed.vector_search.index import vector_indexes

# pgvector README, "Query Options": hnsw looks at 40 candidates by default, 1,000 at most.
DEFAULT_CANDIDATES = 40
MAX_CANDIDATES = 1000


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A chunk that answers a query; `score` is the cosine similarity, -1 to 1.

    `chunk` is verbatim: the document's characters from `start_char` up to `end_char`. In a table
    that is being adopted, a chunk that was not found right yet may have no index and offsets.
    """

    key: str
    score: float
    chunk_index: int | None
    start_char: int | None
    end_char: int | None
    chunk: str


# Ordered by the operator itself, so that the index is used; ordered again because an iterative
# ivfflat scan returns rows in roughly this order only.
SEARCH = """
with nearest as materialized (
    select
        {key} as key,
        target.{chunk_index} as chunk_index,
        target.{start_char} as start_char,
        target.{end_char} as end_char,
        target.{text_chunk} as chunk,
        target.{embedding} operator({extension}.<=>) %(query)s::{vector_type} as distance
    from {target} as target
    order by target.{embedding} operator({extension}.<=>) %(query)s::{vector_type}
    limit %(limit)s
)
select key, 1 - distance, chunk_index, start_char, end_char, chunk
from nearest
where 1 - distance >= %(threshold)s
order by distance, key, chunk_index
"""


# Nothing is taken for deleted here: who searches finds what the policies of the target let him see.
WHAT_ONE_MAY_SEE = "set local row_security = on"


def search(
    connection: Connection,
    pipeline: Pipeline,
    query_vector: NDArray[np.float32],
    *,
    limit: int,
    threshold: float,
) -> list[Hit]:
    """Return up to `limit` chunks with a cosine similarity of at least `threshold`, best first.

    `query_vector` has shape (dimensions,). Raises PipelineReplaced if the next generation, to which
    the query's vector may mean nothing, has just taken over; UsageError for a limit below 1, a
    threshold outside -1 to 1, or a target table that is not there or may not be read.
    """
    check_options(limit, threshold)
    extension = vector_extension(connection)
    query = sql.SQL(SEARCH).format(
        **column_names(pipeline.spec.columns),
        key=pipeline.key.text("target", pipeline.spec.columns.fulltext_id),
        target=target_of(pipeline).rows,
        extension=sql.Identifier(extension.schema),
        vector_type=sql.Identifier(extension.schema, pipeline.spec.vector_type),
    )
    values = {
        "query": "[" + ",".join(map(repr, query_vector.tolist())) + "]",
        "limit": limit,
        "threshold": threshold,
    }
    try:
        with (
            trusting(connection, pipeline.spec, searching=True),
            on_users_tables(connection, _SEARCHING),
            connection.transaction(),
        ):
            _widen_scan(connection, pipeline, limit, extension)
            connection.execute(WHAT_ONE_MAY_SEE)
            hits = [_hit(row) for row in connection.execute(query, values)]
            _check_present(connection, pipeline)
            return hits
    except UntrustedCode:
        raise
    except PipelineFault as error:
        # The vectors of another generation may be of another length, or have moved.
        _check_present(connection, pipeline)
        raise UsageError(f"cannot search {pipeline.target}: {error}") from None


_SEARCHING = "comparing its vectors"


def _check_present(connection: Connection, pipeline: Pipeline) -> None:
    """Raise PipelineReplaced unless the table just read, locked by that, is the pipeline's own."""
    if not is_current(connection, pipeline):
        raise PipelineReplaced(
            f"{pipeline.name} was replaced by its next generation, or dropped, just now; search"
            " again"
        )


def check_options(limit: int, threshold: float) -> None:
    """Raise UsageError for what `search` cannot take, before a model is loaded."""
    check_count("--limit", limit)
    check_type("--threshold", threshold, float)
    if not -1 <= threshold <= 1:
        raise UsageError(
            f"--threshold {threshold:g}: a cosine similarity lies between -1 and 1; unrelated"
            " text is near 0, a good answer often above 0.5"
        )


def _hit(row: tuple[Any, ...]) -> Hit:
    key, score, chunk_index, start_char, end_char, chunk = row
    return Hit(
        key=key,
        score=score,
        chunk_index=chunk_index,
        start_char=start_char,
        end_char=end_char,
        chunk=chunk,
    )


def _widen_scan(
    connection: Connection, pipeline: Pipeline, limit: int, extension: VectorExtension
) -> None:
    """Let an index look at enough candidates for `limit` rows, for this transaction only."""
    candidates = min(MAX_CANDIDATES, max(DEFAULT_CANDIDATES, 2 * limit))
    settings = {"hnsw.ef_search": candidates, "ivfflat.probes": _probes(connection, pipeline)}
    for name, value in settings.items():
        connection.execute(RAISE, {"name": name, "value": value})
    if extension.is_at_least(0, 8):
        connection.execute("set local hnsw.iterative_scan = strict_order")
        connection.execute("set local ivfflat.iterative_scan = relaxed_order")


# A person who has set more for the role or the database keeps it.
RAISE = """
select set_config(
    %(name)s,
    greatest(nullif(current_setting(%(name)s, true), '')::integer, %(value)s)::text,
    true
)
"""


def _probes(connection: Connection, pipeline: Pipeline) -> int:
    """Return how many ivfflat lists to look into: the square root of all (pgvector README)."""
    lists = [
        int(index.parameters.get("lists", 100))
        for index in vector_indexes(connection, pipeline)
        if index.method == "ivfflat"
    ]
    return math.ceil(math.sqrt(max(lists, default=1)))


def has_vectors(connection: Connection, pipeline: Pipeline) -> bool:
    """Return whether there is anything to find; raises UsageError when the target is gone."""
    query = sql.SQL("select exists (select 1 from {} as target)").format(target_of(pipeline).rows)
    try:
        with (
            trusting(connection, pipeline.spec, searching=True),
            on_users_tables(connection, _SEARCHING),
            connection.transaction(),
        ):
            connection.execute(WHAT_ONE_MAY_SEE)
            found = connection.value(query, ())
    except UntrustedCode:
        raise
    except PipelineFault as error:
        raise UsageError(f"cannot search {pipeline.target}: {error}") from None
    return bool(found)
