"""Searches with a condition over many vectors, by each kind of index: what they find, how soon.

The vectors are those of as many short texts, by the default model. The queries are texts that were
held out, and titles of articles, as words that people look for. What is right is computed by NumPy.
Searches have the effort that `pgembed evaluate` keeps for the recall that is wanted, or the
greatest; it asks with other queries than those that are counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from benchmarks.bench import Bench
from benchmarks.database import drop_database, fake_identity, make_pipeline, new_database
from benchmarks.figures import Figure, Measured, Reach, percentile
from benchmarks.quantized import LARGEST_SHARE, LEAST_RECALL, K, fill
from benchmarks.real_vectors import real_vectors
from benchmarks.short_texts import ShortTexts, short_texts
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.db.vectors import vector_text
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search.evaluation import (
    EF_SEARCH,
    Effort,
    Query,
    draw_queries,
    evaluate,
    keep_effort,
)
from pgqueue_embed.vector_search.index import plan
from pgqueue_embed.vector_search.index_build import build_index
from pgqueue_embed.vector_search.index_plan import IndexOptions
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.request import SearchRequest

PART = "filters"
# Of each kind, and besides as many stored chunks as both kinds for the evaluation.
KINDS = ("texts held out", "titles")
COUNTED_QUERIES = 75
EVALUATED_QUERIES = 50
LEAST_FILTERED_RECALL = 0.99
INDEX_MEGABYTES = 6_000
BLOCK = 20

# Of a thousand records, how many a condition lets in; all of them where there is no condition.
LET_IN = {"0.1 %": 1, "2 %": 20, "50 %": 500, "all": 1_000}
RAREST = "0.1 %"

SOURCE = """
create table public.reports (id bigint primary key, body text, lot integer);
insert into public.reports
select number, 'text', lot
from unnest(%(lots)s::integer[]) with ordinality as listed (lot, place)
cross join lateral (select place - 1) as at (number);
analyze public.reports
"""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What searches gave, one of each query: of all `KINDS`, as many of each."""

    shares: list[float]
    seconds: list[float]

    @property
    def recall(self) -> float:
        return float(np.mean(self.shares))

    @property
    def recall_by_kind(self) -> dict[str, float]:
        """The recall of each kind of query."""
        means = np.reshape(self.shares, (len(KINDS), -1)).mean(axis=1)
        return dict(zip(KINDS, map(float, means), strict=True))


@dataclass(frozen=True, kw_only=True)
class _Index:
    size_bytes: int
    build_seconds: float
    effort: Effort
    efforts: Sequence[Effort]
    found: dict[str, _Found]
    most: _Found


@dataclass(frozen=True, kw_only=True)
class _Queries:
    """Vectors that searches ask with, of each kind as many in order."""

    evaluated: NDArray[np.float32]
    counted: NDArray[np.float32]


class _Truth:
    """Which hits are right: those as near as the K nearest that a condition lets in."""

    def __init__(
        self,
        vectors: NDArray[np.float32],
        queries: NDArray[np.float32],
        lots: NDArray[np.int64],
    ) -> None:
        self._vectors = vectors
        self._queries = queries
        self._right: list[dict[str, tuple[int, float]]] = []
        for first in range(0, len(queries), BLOCK):
            similarities = queries[first : first + BLOCK] @ vectors.T
            self._right += [self._of(each, lots) for each in similarities]

    @staticmethod
    def _of(
        similarities: NDArray[np.float32], lots: NDArray[np.int64]
    ) -> dict[str, tuple[int, float]]:
        """Return how many hits there are to find, and how near the last of them is."""
        right = {}
        for name, let_in in LET_IN.items():
            matching = similarities[lots < let_in]
            count = min(K, len(matching))
            right[name] = (count, float(np.partition(matching, -count)[-count]) - 1e-6)
        return right

    def share(self, name: str, number: int, keys: list[int]) -> float:
        """Return the share, 0 to 1, that a search found of the hits of a query."""
        count, least = self._right[number][name]
        similarities = self._vectors[keys] @ self._queries[number]
        return min(count, int(np.sum(similarities >= least))) / count


def measure(bench: Bench) -> Iterator[Measured]:
    """Build each kind of index and search by it, with conditions that let few in, and many."""
    texts = short_texts(bench, bench.sizes.filtered_vectors)
    if texts is None:
        return
    vectors = real_vectors(texts.texts, bench.say)
    queries = _queries(bench, texts)
    lots = np.random.default_rng(1).integers(0, 1_000, len(vectors))
    bench.say("the right answers")
    truth = _Truth(vectors, queries.counted, lots)
    conninfo = new_database(bench.server)
    try:
        with connect(conninfo) as connection:
            bench.say(f"{len(vectors):,} vectors into the table")
            for statement in SOURCE.split(";"):
                connection.execute(statement, {"lots": lots.tolist()})
            pipeline = make_pipeline(connection, fake_identity(vectors.shape[1]))
            fill(connection, pipeline, vectors)
            indexes: dict[str, _Index] = {}
            corpus = f"short texts: {len(vectors):,} x {vectors.shape[1]}"
            for quantize in ("binary", "halfvec", "none"):  # what takes longest comes last
                bench.say(f"an index of {quantize} over {len(vectors):,} vectors")
                indexes[quantize] = _index(bench, connection, pipeline, quantize, queries, truth)
                yield _measured(quantize, indexes[quantize], corpus)
            yield Measured(reaches=_sizes(indexes))
    finally:
        drop_database(bench.server, conninfo)


def _queries(bench: Bench, texts: ShortTexts) -> _Queries:
    """Embed the queries; those by which the effort is found come after those that count."""
    each, last = COUNTED_QUERIES, COUNTED_QUERIES + EVALUATED_QUERIES
    kinds = (texts.held_out, texts.titles)
    counted = [text for kind in kinds for text in kind[:each]]
    evaluated = [text for kind in kinds for text in kind[each:last]]
    found = real_vectors([*counted, *evaluated], bench.say)
    return _Queries(evaluated=found[len(counted) :], counted=found[: len(counted)])


def _index(
    bench: Bench,
    connection: Connection,
    pipeline: Pipeline,
    quantize: str,
    queries: _Queries,
    truth: _Truth,
) -> _Index:
    options = IndexOptions(quantize=quantize, memory_megabytes=INDEX_MEGABYTES)
    started = time.perf_counter()
    name = build_index(connection, pipeline, plan(connection, pipeline, options))
    took = time.perf_counter() - started
    size = connection.value("select pg_relation_size(%s::regclass)", (f'public."{name}"',))
    bench.say("the effort that it takes")
    effort, efforts = _evaluated(connection, pipeline, queries.evaluated)
    bench.say(f"searches with ef_search {effort.ef_search}")
    asked = queries.counted
    found = {each: _searched(connection, pipeline, each, asked, truth) for each in LET_IN}
    with _most_effort(connection):
        most = _searched(connection, pipeline, "all", asked, truth)
    bench.say(", ".join(f"{name}: {each.recall:.4f}" for name, each in found.items()))
    connection.execute(sql.SQL("drop index public.{}").format(sql.Identifier(name)))
    return _Index(
        size_bytes=int(size),
        build_seconds=took,
        effort=effort,
        efforts=efforts,
        found=found,
        most=most,
    )


@contextmanager
def _most_effort(connection: Connection) -> Iterator[None]:
    """Let searches have the greatest ef_search, as a person can for a role or a session."""
    connection.execute(sql.SQL("set hnsw.ef_search = {}").format(EF_SEARCH[-1]))
    yield
    connection.execute("reset hnsw.ef_search")


def _evaluated(
    connection: Connection, pipeline: Pipeline, queries: NDArray[np.float32]
) -> tuple[Effort, Sequence[Effort]]:
    """Keep the ef_search that stored chunks and queries take, as `evaluate` does; and all tried."""
    asked = [
        *draw_queries(connection, pipeline, len(queries), seed=1),
        *(Query(vector=vector_text(each), is_stored=False) for each in queries),
    ]
    evaluation = evaluate(connection, pipeline, asked, k=K)
    effort = evaluation.least(LEAST_FILTERED_RECALL) or evaluation.efforts[-1]
    keep_effort(connection, pipeline, evaluation, effort)
    return effort, evaluation.efforts


def _searched(
    connection: Connection,
    pipeline: Pipeline,
    name: str,
    queries: NDArray[np.float32],
    truth: _Truth,
) -> _Found:
    where = None if name == "all" else f"lot < {LET_IN[name]}"
    request = SearchRequest(limit=K, threshold=-1.0, where=where)
    shares, seconds = [], []
    for number, query in enumerate(queries):
        started = time.perf_counter()
        hits = search(connection, pipeline, query, request)
        seconds.append(time.perf_counter() - started)
        shares.append(truth.share(name, number, [int(hit.key) for hit in hits]))
    return _Found(shares=shares, seconds=seconds)


def _measured(quantize: str, index: _Index, corpus: str) -> Measured:
    def figure(name: str, unit: str, value: float) -> Figure:
        says = f"index of {quantize}, {name}"
        return Figure(part=PART, name=says, corpus=corpus, unit=unit, values=[value])

    found = Measured()
    found.figures += [
        figure("size", "MB", index.size_bytes / 1024**2),
        figure("build", "s", index.build_seconds),
        replace(figure("ef_search", "", index.effort.ef_search or 0), details=_curve(index)),
    ]
    for name, each in index.found.items():
        found.figures += [
            figure(f"{name}, recall@{K}", "", each.recall),
            figure(f"{name}, search p50", "ms", 1e3 * percentile(each.seconds, 50)),
            figure(f"{name}, search p95", "ms", 1e3 * percentile(each.seconds, 95)),
        ]
    found.figures += [
        figure(f"all, recall@{K} by the most effort", "", index.most.recall),
        figure(
            "all, search p50 by the most effort", "ms", 1e3 * percentile(index.most.seconds, 50)
        ),
    ]
    found.figures += [
        figure(f"all, recall@{K} of {kind}", "", recall)
        for kind, recall in index.found["all"].recall_by_kind.items()
    ]
    found.reaches = _recalls(quantize, index)
    return found


def _curve(index: _Index) -> dict[str, list[float]]:
    """Return what `evaluate` has tried, and found of stored chunks and of queries."""
    return {
        "ef_search": [each.ef_search or 0 for each in index.efforts],
        "recall of stored chunks": [each.recall or 0 for each in index.efforts],
        "recall of queries": [each.query_recall or 0 for each in index.efforts],
        "p50 seconds": [each.p50_seconds for each in index.efforts],
    }


def _recalls(quantize: str, index: _Index) -> list[Reach]:
    wanted = {f"{RAREST} let in: recall@{K}": (RAREST, LEAST_FILTERED_RECALL)}
    if quantize in LARGEST_SHARE:
        wanted[f"recall@{K} after ordering by the whole vectors"] = ("all", LEAST_RECALL)
    return [
        Reach(
            name=f"index of {quantize}, {says}",
            measured=index.found[name].recall,
            target=target,
            unit="",
        )
        for says, (name, target) in wanted.items()
    ]


def _sizes(indexes: dict[str, _Index]) -> list[Reach]:
    return [
        Reach(
            name=f"index of {quantize}, size against whole vectors",
            measured=indexes[quantize].size_bytes / indexes["none"].size_bytes,
            target=share,
            at_most=True,
        )
        for quantize, share in LARGEST_SHARE.items()
    ]
