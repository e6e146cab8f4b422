"""Searches with a condition over many vectors, by each kind of index: what they find, how soon.

The vectors lie among those of real chunks; the queries are vectors of real chunks that none was
made from. What is right is computed by NumPy. Searches have the effort that `pgembed evaluate`
keeps for the recall that is wanted, or the greatest.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from benchmarks.bench import Bench
from benchmarks.corpora import maude
from benchmarks.database import drop_database, fake_identity, make_pipeline, new_database
from benchmarks.figures import Figure, Measured, Reach, percentile
from benchmarks.near_vectors import near
from benchmarks.quantized import LARGEST_SHARE, LEAST_RECALL, K, embed, fill
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.db.vectors import vector_text
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search.evaluation import Query, draw_queries, evaluate, keep_effort
from pgqueue_embed.vector_search.index import plan
from pgqueue_embed.vector_search.index_build import build_index
from pgqueue_embed.vector_search.index_plan import IndexOptions
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.request import SearchRequest

PART = "filters"
MOST_QUERIES = 100
EVALUATED_CHUNKS = 50
LEAST_FILTERED_RECALL = 0.99
INDEX_MEGABYTES = 6_000

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
    """What searches gave, one of each query."""

    recall: float
    seconds: list[float]


@dataclass(frozen=True, kw_only=True)
class _Index:
    size_bytes: int
    build_seconds: float
    ef_search: int
    found: dict[str, _Found]


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
        self._right = [self._of(vectors @ query, lots) for query in queries]

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
    documents = maude().sample(bench.sizes.maude_records).documents
    bench.say(f"embedding the chunks of {len(documents):,} reports")
    real = embed(documents)
    count = min(MOST_QUERIES, len(real) // 2)
    bases, queries = real[count:], real[:count]
    vectors = near(bases, bench.sizes.filtered_vectors)
    lots = np.random.default_rng(1).integers(0, 1_000, len(vectors))
    bench.say("the right answers")
    truth = _Truth(vectors, queries, lots)
    conninfo = new_database(bench.server)
    try:
        with connect(conninfo) as connection:
            bench.say(f"{len(vectors):,} vectors into the table")
            for statement in SOURCE.split(";"):
                connection.execute(statement, {"lots": lots.tolist()})
            pipeline = make_pipeline(connection, fake_identity(vectors.shape[1]))
            fill(connection, pipeline, vectors)
            indexes: dict[str, _Index] = {}
            for quantize in ("none", "halfvec", "binary"):
                bench.say(f"an index of {quantize} over {len(vectors):,} vectors")
                indexes[quantize] = _index(bench, connection, pipeline, quantize, queries, truth)
                corpus = f"{len(vectors):,} x {vectors.shape[1]}"
                yield _measured(quantize, indexes, corpus)
    finally:
        drop_database(bench.server, conninfo)


def _index(
    bench: Bench,
    connection: Connection,
    pipeline: Pipeline,
    quantize: str,
    queries: NDArray[np.float32],
    truth: _Truth,
) -> _Index:
    options = IndexOptions(quantize=quantize, memory_megabytes=INDEX_MEGABYTES)
    started = time.perf_counter()
    name = build_index(connection, pipeline, plan(connection, pipeline, options))
    took = time.perf_counter() - started
    size = connection.value("select pg_relation_size(%s::regclass)", (f'public."{name}"',))
    bench.say("the effort that it takes")
    ef_search = _evaluated(connection, pipeline, queries)
    bench.say(f"searches with ef_search {ef_search}")
    found = {each: _searched(connection, pipeline, each, queries, truth) for each in LET_IN}
    connection.execute(sql.SQL("drop index public.{}").format(sql.Identifier(name)))
    return _Index(size_bytes=int(size), build_seconds=took, ef_search=ef_search, found=found)


def _evaluated(connection: Connection, pipeline: Pipeline, queries: NDArray[np.float32]) -> int:
    """Keep the ef_search that stored chunks and half of the queries take, as `evaluate` does."""
    asked = [
        *draw_queries(connection, pipeline, EVALUATED_CHUNKS, seed=1),
        *(Query(vector=vector_text(each), is_stored=False) for each in queries[::2]),
    ]
    evaluation = evaluate(connection, pipeline, asked, k=K)
    effort = evaluation.least(LEAST_FILTERED_RECALL) or evaluation.efforts[-1]
    keep_effort(connection, pipeline, evaluation.index, effort)
    assert effort.ef_search is not None
    return effort.ef_search


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
    return _Found(recall=float(np.mean(shares)), seconds=seconds)


def _measured(quantize: str, indexes: dict[str, _Index], corpus: str) -> Measured:
    index = indexes[quantize]

    def figure(name: str, unit: str, value: float) -> Figure:
        says = f"index of {quantize}, {name}"
        return Figure(part=PART, name=says, corpus=corpus, unit=unit, values=[value])

    found = Measured()
    found.figures += [
        figure("size", "MB", index.size_bytes / 1024**2),
        figure("build", "s", index.build_seconds),
        figure("ef_search", "", index.ef_search),
    ]
    for name, each in index.found.items():
        found.figures += [
            figure(f"{name}, recall@{K}", "", each.recall),
            figure(f"{name}, search p50", "ms", 1e3 * percentile(each.seconds, 50)),
            figure(f"{name}, search p95", "ms", 1e3 * percentile(each.seconds, 95)),
        ]
    found.reaches = _reaches(quantize, indexes)
    return found


def _reaches(quantize: str, indexes: dict[str, _Index]) -> list[Reach]:
    index = indexes[quantize]
    reaches = [
        Reach(
            name=f"index of {quantize}, {RAREST} let in: recall@{K}",
            measured=index.found[RAREST].recall,
            target=LEAST_FILTERED_RECALL,
            unit="",
        )
    ]
    if quantize in LARGEST_SHARE:
        reaches += [
            Reach(
                name=f"index of {quantize}, size against whole vectors",
                measured=index.size_bytes / indexes["none"].size_bytes,
                target=LARGEST_SHARE[quantize],
                at_most=True,
            ),
            Reach(
                name=f"index of {quantize}, recall@{K} after ordering by the whole vectors",
                measured=index.found["all"].recall,
                target=LEAST_RECALL,
                unit="",
            ),
        ]
    return reaches
