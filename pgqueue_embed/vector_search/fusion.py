"""Two rankings of the same things as one: weighted reciprocal rank fusion."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

Thing = TypeVar("Thing", bound=Hashable)
Found = TypeVar("Found")

# Cormack, Clarke and Buettcher, Reciprocal Rank Fusion (2009).
K = 60

# So many of each ranking are fused, however many are asked for, so that pages are of one order.
FUSED_DEPTH = 100


def fused(
    by_vectors: Sequence[Thing], by_words: Sequence[Thing], lexical_weight: float
) -> dict[Thing, float]:
    """Return the things of both rankings, best first, with a score of 0 to 1: 1 is first in both.

    The first FUSED_DEPTH of each count; what vectors rank behind these follows, in their order,
    with a score of 0. The score is
    (61 (1 - w) / (60 + rank by vectors)) + (61 w / (60 + rank by words)).
    """
    scores: dict[Thing, float] = {}
    for ranking, weight in ((by_words, lexical_weight), (by_vectors, 1 - lexical_weight)):
        for rank, thing in enumerate(ranking[:FUSED_DEPTH], start=1):
            scores[thing] = scores.get(thing, 0.0) + weight * (K + 1) / (K + rank)
    # Stable: of equal ones, those with the words first, since vectors always rank something.
    best = sorted(scores, key=lambda thing: -scores[thing])
    return {thing: scores[thing] for thing in best} | {
        thing: 0.0 for thing in by_vectors[FUSED_DEPTH:] if thing not in scores
    }


def firsts(found: Iterable[Found], thing_of: Callable[[Found], Thing]) -> dict[Thing, Found]:
    """Return the first that was found of each thing, in their order."""
    first: dict[Thing, Found] = {}
    for each in found:
        first.setdefault(thing_of(each), each)
    return first
