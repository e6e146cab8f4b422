"""The best order of what was found: by a model that reads chunks again, and by variety."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from pgqueue_embed.vector_search.hit import Hit, HitWithVector
from pgqueue_embed.vector_search.request import SearchRequest
from pgqueue_embed.vector_search.variety import parse_vectors, scaled, varied

# Returns how well each of some chunks answers the query, more for better.
Score = Callable[[Sequence[str]], NDArray[np.float32]]


def wanted_to_order(request: SearchRequest, score: Score | None) -> SearchRequest:
    """Return what has to be found so that `in_better_order` can answer the request."""
    if score is None and request.mmr is None:
        return request
    # Of the same ones for each page, so that none is shown twice.
    wanted = request.offset + request.limit
    return replace(request, offset=0, limit=max(request.rerank_top, wanted))


def in_better_order(found: Sequence[Hit], request: SearchRequest, score: Score | None) -> list[Hit]:
    """Return the hits of `request` out of what was found, the first ones ordered by `score`."""
    if score is None and request.mmr is None:
        return list(found)
    top, wanted = request.rerank_top, request.offset + request.limit
    ordered = [*_in_better_order(found[:top], request.mmr, score), *found[top:]]
    return [_plain(hit) for hit in ordered[request.offset : wanted]]


def _in_better_order(hits: Sequence[Hit], mmr: float | None, score: Score | None) -> Sequence[Hit]:
    relevance = np.array([_orders(hit) for hit in hits], np.float32)
    if score is not None:
        hits, relevance = _read_again(hits, score)
    if mmr is not None and hits:
        vectors = parse_vectors([hit.vector for hit in hits if isinstance(hit, HitWithVector)])
        hits = [hits[at] for at in varied(relevance, vectors, mmr)]
    return hits


def _read_again(hits: Sequence[Hit], score: Score) -> tuple[Sequence[Hit], NDArray[np.float32]]:
    """Return the hits ordered by `score`, with their relevance; last are those without a text."""
    with_text = [hit for hit in hits if hit.chunk is not None]
    without = [hit for hit in hits if hit.chunk is None]
    scores = score([hit.chunk or "" for hit in with_text])
    best = np.argsort(-scores, kind="stable")
    ordered = [replace(with_text[at], rerank_score=float(scores[at])) for at in best]
    relevance = np.append(scaled(scores[best]), np.zeros(len(without), np.float32))
    return [*ordered, *without], relevance


def _orders(hit: Hit) -> float:
    return hit.score if hit.hybrid_score is None else hit.hybrid_score


def _plain(hit: Hit) -> Hit:
    return Hit(**{each.name: getattr(hit, each.name) for each in fields(Hit)})
