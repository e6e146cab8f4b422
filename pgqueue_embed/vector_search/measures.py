"""Measures of rankings by judgements: those of trec_eval, with the intervals of their means.

A ranking is the keys of records, best first; a judgement gives a record a relevance of 0 or more
for a query, and what is not judged has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ranking = Sequence[str]
Relevance = Mapping[str, float]

# As many means of as many queries, drawn with replacement: their middle 95 % are the interval.
RESAMPLES = 2_000
INTERVAL_PERCENT = (2.5, 97.5)

# The longest ranking that a measure looks at.
DEPTH = 100


def ndcg(ranking: Ranking, relevance: Relevance, depth: int = 10) -> float:
    """Return the normalized discounted cumulative gain of the first `depth`, 0 to 1.

    The gain is the relevance itself, the discount log2(rank + 1), as trec_eval's ndcg_cut has them
    (Järvelin and Kekäläinen, 2002); the ideal is of all judged records.
    """
    best = _discounted(sorted(relevance.values(), reverse=True)[:depth])
    return _discounted([relevance.get(key, 0) for key in ranking[:depth]]) / best if best else 0.0


def recall(ranking: Ranking, relevance: Relevance, depth: int = DEPTH) -> float:
    """Return the share of the relevant records among the first `depth`, 0 to 1."""
    relevant = _relevant(relevance)
    return len(relevant.intersection(ranking[:depth])) / len(relevant) if relevant else 0.0


def reciprocal_rank(ranking: Ranking, relevance: Relevance, depth: int = 10) -> float:
    """Return 1 / the rank of the first relevant record of the first `depth`, 0 if none is."""
    relevant = _relevant(relevance)
    ranks = (rank for rank, key in enumerate(ranking[:depth], start=1) if key in relevant)
    return 1 / next(ranks, np.inf)


def _discounted(gains: Sequence[float]) -> float:
    return float(sum(max(0, gain) / np.log2(rank + 1) for rank, gain in enumerate(gains, start=1)))


def _relevant(relevance: Relevance) -> set[str]:
    return {key for key, each in relevance.items() if each > 0}


MEASURES: Mapping[str, Callable[[Ranking, Relevance], float]] = {
    "nDCG@10": ndcg,
    "Recall@100": recall,
    "MRR@10": reciprocal_rank,
}


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over queries, or a difference of two, and the interval that has it in 95 of 100."""

    mean: float
    low: float
    high: float


def by_query(
    rankings: Mapping[str, Ranking], judgements: Mapping[str, Relevance]
) -> NDArray[np.float64]:
    """Return each measure of each judged query, in order; shape (queries, measures)."""
    return np.array(
        [
            [measure(rankings[query], relevance) for measure in MEASURES.values()]
            for query, relevance in judgements.items()
        ]
    )


def estimates_by_name(values: Sequence[NDArray[np.float64]], seed: int) -> list[dict[str, Mean]]:
    """Return the means of each of `values`, all as `by_query` gives them, by the measure's name.

    They are of the same queries, of which the same are drawn for all of them.
    """
    found = iter(estimates(np.concatenate(values, axis=1), seed))
    return [{name: next(found) for name in MEASURES} for _ in values]


def estimates(values: NDArray[np.float64], seed: int) -> list[Mean]:
    """Return the means of `values`, shape (queries, measures), by column, with their intervals.

    The rows are queries, of which the same are drawn for all columns: a bootstrap, so that nothing
    is assumed of how measures are spread.
    """
    random, queries = np.random.default_rng(seed), len(values)
    means = [values[random.integers(queries, size=queries)].mean(axis=0) for _ in range(RESAMPLES)]
    lows, highs = np.percentile(means, INTERVAL_PERCENT, axis=0)
    return [
        Mean(mean=float(mean), low=float(low), high=float(high))
        for mean, low, high in zip(values.mean(axis=0), lows, highs, strict=True)
    ]
