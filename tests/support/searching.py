"""Four thousand chunks to search in, whose nearest are known by brute force."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search.hit import Hit
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.request import SearchRequest

ROWS = 2_000
CHUNKS = 2 * ROWS
QUERY = np.eye(1, 8, dtype=np.float32)[0]

# Of 2,000 rows: none, 2, 40, 1,000.
CONDITIONS = ("kind = 5000", "id % 1000 = 7", "kind = 7", "id % 2 = 0")


def brute_force(connection: Connection, where: str) -> list[tuple[int, int, float]]:
    """Return (id, chunk, similarity) of all that a condition lets in, best first."""
    rows = connection.execute(
        "select reports.id, chunk_index, embedding::real[] from reports join reports_chunks"
        f" on fulltext_id = reports.id where reports.id in (select id from reports where {where})"
    )
    found = [(key, index, float(np.dot(QUERY, vector))) for key, index, vector in rows]
    return sorted(found, key=lambda each: -each[2])


def ask(conninfo: str, pipeline: Pipeline, **asked: object) -> list[Hit]:
    request = SearchRequest(**{"threshold": -1.0, **asked})  # type: ignore[arg-type]
    with connect(conninfo) as own:
        return search(own, pipeline, QUERY, request)


def scores(hits: list[Hit]) -> NDArray[np.float64]:
    return np.array([hit.score for hit in hits])
