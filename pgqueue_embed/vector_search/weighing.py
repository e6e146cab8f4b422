"""Finds the weight of words beside vectors in hybrid searches, by people's judgements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.steps import run
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search.fusion import fused
from pgqueue_embed.vector_search.hit import Hit
from pgqueue_embed.vector_search.judged_search import REQUEST, canonical
from pgqueue_embed.vector_search.judgements import Judgements
from pgqueue_embed.vector_search.kept import keep
from pgqueue_embed.vector_search.lexical import USUAL_WEIGHT, ready
from pgqueue_embed.vector_search.measures import DEPTH, Mean, by_query, estimates_by_name
from pgqueue_embed.vector_search.request import SearchRequest

# Those nearest to the usual one first: of equally good ones, the first is taken.
WEIGHTS = sorted((each / 10 for each in range(11)), key=lambda each: abs(each - USUAL_WEIGHT))

# What the best weight is best by.
CHOSEN_BY = "nDCG@10"

# One chooses the weight, another one tells what it is worth.
LEAST_QUERIES = 2

# Returns what a search finds for words as a request says.
SearchWords = Callable[[str, SearchRequest], Sequence[Hit]]


@dataclass(frozen=True, kw_only=True)
class Weighed:
    """The weight that was best by one half of the queries, and what it does by the other half.

    `vectors` and `hybrid` are the measures of the `queries` of that other half, by name, and
    `difference` the latter's less the former's; `change` is less those of the weight that searches
    have at `present`.
    """

    weight: float
    present: float
    queries: int
    vectors: Mapping[str, Mean]
    hybrid: Mapping[str, Mean]
    difference: Mapping[str, Mean]
    change: Mapping[str, Mean]

    @property
    def is_worse(self) -> bool:
        """Whether the other half says so: the first one may be a single query."""
        return self.change[CHOSEN_BY].mean < 0


@dataclass(frozen=True, kw_only=True)
class Rankings:
    """The records that vectors rank for each query, and those that words do."""

    by_vectors: Mapping[str, Sequence[str]]
    by_words: Mapping[str, Sequence[str]]

    def fused(self, queries: Sequence[str], weight: float) -> dict[str, list[str]]:
        """Return what hybrid searches for `queries` find."""
        return {
            query: list(fused(self.by_vectors[query], self.by_words[query], weight))[:DEPTH]
            for query in queries
        }


def rank(
    search: SearchWords,
    queries: Mapping[str, str],
    on_progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> Rankings:
    """Search for each of `queries`, words by id, by vectors and by words."""
    by_vectors, by_words = {}, {}
    for number, (query, words) in enumerate(queries.items(), start=1):
        by_vectors[query] = [hit.key_text for hit in search(words, REQUEST)]
        request = replace(REQUEST, words=words, lexical_weight=1.0)
        # What only vectors rank has a score of 0 then.
        by_words[query] = [hit.key_text for hit in search(words, request) if hit.hybrid_score]
        on_progress(number, len(queries))
    return Rankings(by_vectors=by_vectors, by_words=by_words)


def weigh(
    connection: Connection,
    pipeline: Pipeline,
    rankings: Rankings,
    judgements: Judgements,
    *,
    seed: int,
) -> Weighed:
    """Return the weight with the best mean nDCG@10; raises UsageError of fewer than two queries."""
    judged = {each: judgements[each] for each in rankings.by_vectors}
    judged = dict(canonical(connection, pipeline, judged))
    shuffled = [list(judged)[at] for at in np.random.default_rng(seed).permutation(len(judged))]
    chosen_by, told_by = shuffled[::2], shuffled[1::2]
    if len(judged) < LEAST_QUERIES:
        raise UsageError("a weight for --hybrid is found by two judged queries or more")

    def quality(weight: float) -> float:
        relevance = {each: judged[each] for each in chosen_by}
        found = rankings.fused(chosen_by, weight)
        # Noise in the last digits would choose among equal ones.
        return round(float(by_query(found, relevance)[:, 0].mean()), 9)

    weight, present = max(WEIGHTS, key=quality), run(connection, ready(pipeline)).weight
    relevance = {each: judged[each] for each in told_by}
    vectors, hybrid, of_now = (
        by_query(rankings.fused(told_by, each), relevance) for each in (0.0, weight, present)
    )
    of_vectors, of_hybrid, difference, change = estimates_by_name(
        [vectors, hybrid, hybrid - vectors, hybrid - of_now], seed
    )
    return Weighed(
        weight=weight,
        present=present,
        queries=len(told_by),
        vectors=of_vectors,
        hybrid=of_hybrid,
        difference=difference,
        change=change,
    )


def keep_weight(connection: Connection, pipeline: Pipeline, weight: float) -> None:
    """Let the hybrid searches of the pipeline use it; raises NotKept where that is refused."""
    query = "update pgembed.pipelines set lexical_weight = %(weight)s where id = %(id)s"
    values = {"weight": weight, "id": pipeline.id}
    keep(connection, query, values, what=f"the words' weight of {pipeline.name}")
