"""Semantic search as a function."""

from __future__ import annotations

from pgqueue_embed import semantic_search
from pgqueue_embed.api.pipeline import Pipeline
from pgqueue_embed.semantic_search import Hit


def search(pipeline: Pipeline, query: str, *, limit: int = 5, threshold: float = 0.0) -> list[Hit]:
    """Return up to `limit` chunks nearest in meaning to `query`, best first.

    Those with a cosine similarity of at least `threshold`, -1 to 1. The query goes through the
    pipeline's own model, on the CPU of this machine, loaded at the first search of the process.
    Raises PgembedError for a query without text, or a model that is not to be had.

    Example::

        for hit in search(reports, "battery overheated while charging"):
            print(hit.score, hit.key, hit.chunk)
    """
    semantic_search.check_options(limit, threshold)
    return pipeline.find(query, limit=limit, threshold=threshold)
