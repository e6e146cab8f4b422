"""Variety in what a search has found: hits that are relevant, and unlike one another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def varied(
    relevance: NDArray[np.float32], vectors: NDArray[np.float32], trade_off: float
) -> list[int]:
    """Return the positions of hits so that each is relevant and unlike those before it.

    Maximal marginal relevance (Carbonell and Goldstein, 1998): the next one has the most of
    `trade_off` * its relevance - (1 - `trade_off`) * its greatest cosine to one before it.
    `relevance` has shape (n,), `vectors`, of any length but 0, (n, dimensions).
    """
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = np.full(len(unit), -np.inf, np.float32)
    left = np.ones(len(unit), bool)
    order: list[int] = []
    while len(order) < len(unit):
        worth = trade_off * relevance
        if order:
            similarity = np.maximum(similarity, unit @ unit[order[-1]])
            worth = worth - (1 - trade_off) * similarity
        best = int(np.where(left, worth, -np.inf).argmax())
        left[best] = False
        order.append(best)
    return order


def scaled(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return scores of any scale, shape (hits,), from 0 to 1 as cosines are, to be weighed."""
    low, high = scores.min(initial=np.inf), scores.max(initial=-np.inf)
    return (scores - low) / (high - low) if high > low else np.ones_like(scores)


def parse_vectors(texts: Sequence[str]) -> NDArray[np.float32]:
    """Return vectors as pgvector writes them; shape (n, dimensions)."""
    return np.array([text[1:-1].split(",") for text in texts], np.float32)
