"""Recall and latency of an HNSW index against exact search, by hnsw.ef_search."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from psycopg import sql

from pgqueue_embed.db.session import Connection, RawCursor
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.untrusted.shell import command
from pgqueue_embed.vector_search.index import count_vectors, vector_indexes
from pgqueue_embed.vector_search.kept import keep
from pgqueue_embed.vector_search.reading import COMPARING, reading_chunks
from pgqueue_embed.vector_search.relation import Relation, relation_of
from pgqueue_embed.vector_search.request import SearchRequest, no_vectors

# What is tried, in steps of about a third; pgvector takes 1,000 at most.
EF_SEARCH = (10, 20, 30, 40, 60, 80, 120, 160, 240, 320, 480, 640, 800, 1000)

# Chunks whose distance is the same but for rounding are as good as one another.
ROUNDING = 1e-6

# Blocks are drawn, and chunks of them: of many more blocks than are needed, so that these are not
# of a few records. The same as long as the table is, for the same seed.
SAMPLE = """
select vector
from (
    select {embedding}::text as vector
    from {target} tablesample system ({percent}) repeatable ({seed})
    where {embedding} is not null
) as drawn
order by md5(vector)
limit %(limit)s
"""
DRAWN_PER_QUERY = 20


@dataclass(frozen=True, kw_only=True)
class Query:
    """The vector of a query, as pgvector writes it; a stored chunk is not to find itself."""

    vector: str
    is_stored: bool


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What searches with one `ef_search` find, and take; None stands for an exact search.

    `recall` is the mean share of the k nearest chunks that were found, 0 to 1, of stored chunks and
    `query_recall` that of the person's own queries, if there are any; each with the standard error
    of that mean.
    """

    ef_search: int | None
    recall: float | None
    recall_error: float | None
    query_recall: float | None
    query_recall_error: float | None
    p50_seconds: float
    p95_seconds: float

    @property
    def least_share(self) -> float:
        """The lesser one of both shares."""
        return min(each for each in (self.recall, self.query_recall, 1.0) if each is not None)

    def reaches(self, recall: float, *, less_errors: float = 0.0) -> bool:
        """Return whether both shares, less so many standard errors, are at least `recall`."""
        shares = (
            (self.recall, self.recall_error),
            (self.query_recall, self.query_recall_error),
        )
        return all(
            mean is None or mean - less_errors * (error or 0.0) >= recall for mean, error in shares
        )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The exact search, and those by the index in order of their effort."""

    index: str
    k: int
    exact: Effort
    efforts: Sequence[Effort]

    def least(self, recall: float) -> Effort | None:
        """Return the least effort from which on `recall` is reached, or None.

        Of many efforts the least whose mean reaches it is one that had luck with the queries that
        were drawn. So the mean has to reach it less its standard error (the rule by which Breiman
        and others choose the smallest tree, 1984), or it is the most effort that there is.
        """
        last = len(self.efforts) - 1
        reaching = [
            each.reaches(recall, less_errors=0.0 if at == last else 1.0)
            for at, each in enumerate(self.efforts)
        ]
        enough = [each for at, each in enumerate(self.efforts) if all(reaching[at:])]
        return enough[0] if enough else None

    def nearest(self) -> Effort:
        """Return the least of the efforts that come nearest to finding everything."""
        return max(self.efforts, key=lambda each: each.least_share)


def draw_queries(connection: Connection, pipeline: Pipeline, count: int, seed: int) -> list[Query]:
    """Return up to `count` stored chunks, the same ones as long as the table is the same."""
    rows = max(1, count_vectors(connection, pipeline))
    share = min(100.0, 100.0 * DRAWN_PER_QUERY * count / rows)
    found: list[Query] = []
    for percent in (share, 100.0):
        query = sql.SQL(SAMPLE).format(
            embedding=sql.Identifier(pipeline.spec.columns.embedding),
            target=pipeline.target.identifier,
            percent=sql.Literal(percent),
            seed=sql.Literal(seed),
        )
        with reading_chunks(connection, pipeline, COMPARING):
            drawn = connection.execute(query, {"limit": count}).fetchall()
        found = [Query(vector=vector, is_stored=True) for (vector,) in drawn]
        if len(found) == count:
            break
    return found


def evaluate(
    connection: Connection,
    pipeline: Pipeline,
    queries: Sequence[Query],
    *,
    k: int,
    on_progress: Callable[[str, int, int], None] = lambda _what, _done, _of: None,
) -> Evaluation:
    """Search for the `k` nearest of each query exactly and by the index, with more and more effort.

    `on_progress` gets what is done, how many searches of it are, and of how many. Raises UsageError
    without queries, or without an HNSW index that searches are ordered by.
    """
    if not queries:
        raise UsageError(no_vectors(pipeline.name))
    relation = relation_of(connection, pipeline, SearchRequest(limit=k))
    if relation is None:
        raise UsageError(f"{pipeline.name} was replaced or dropped just now; evaluate again")
    index = _index_of(connection, pipeline, relation)
    search = _Searches(connection, pipeline, relation, queries, k, on_progress)
    exact, truth = search.run("exact searches", relation.exact_statement, None)
    least = search.least_effort()
    search.run("warming up", relation.statement, least)
    efforts = []
    for ef_search in (each for each in EF_SEARCH if each >= least):
        times, found = search.run(f"ef_search {ef_search}", relation.statement, ef_search)
        efforts.append(_effort(queries, ef_search, times, truth, found, k))
    return Evaluation(
        index=index, k=k, exact=_effort(queries, None, exact, truth, truth, k), efforts=efforts
    )


def searched_recall(
    connection: Connection, pipeline: Pipeline, queries: Sequence[Query], *, k: int
) -> float | None:
    """Return the share of the `k` nearest that searches find now, 0 to 1, as `evaluate` measures.

    None of a pipeline that was replaced, or where nothing is to be found.
    """
    relation = relation_of(connection, pipeline, SearchRequest(limit=k))
    if relation is None:
        return None
    search = _Searches(connection, pipeline, relation, queries, k, lambda _what, _done, _of: None)
    _, truth = search.run("exact searches", relation.exact_statement, None)
    usual = search.usual_effort()
    times, found = search.run(f"ef_search {usual}", relation.statement, usual)
    return _effort(queries, usual, times, truth, found, k).recall


KEEP = """
update pgembed.pipelines
set ef_search = %(ef_search)s,
    ef_search_scan = vector_indexes.quantize,
    ef_search_parameters = parameters,
    ef_search_k = %(k)s,
    ef_search_recall = %(recall)s
from pgembed.vector_indexes
where id = %(id)s and vector_indexes.pipeline = name and index_name = %(index)s
"""


def keep_effort(
    connection: Connection, pipeline: Pipeline, found: Evaluation, effort: Effort
) -> None:
    """Let the searches of the pipeline use its ef_search, as long as an index is built like this.

    For how many nearest, and what share of them it found, is kept along. Raises NotKept where that
    is refused or the index is gone.
    """
    values = {
        "id": pipeline.id,
        "index": found.index,
        "k": found.k,
        "ef_search": effort.ef_search,
        "recall": effort.least_share,
    }
    keep(connection, KEEP, values, what=f"ef_search {effort.ef_search} of {found.index}")


KEPT = "select ef_search from pgembed.pipelines where id = %s"
USED = """
select pgembed.measured_effort(pipelines, pgembed.search_scan(pipelines))
from pgembed.pipelines
where id = %s
"""


def lapsed_effort(
    connection: Connection, pipeline: Pipeline, kept: int | None = None
) -> int | None:
    """Return the ef_search that was measured, if searches do not use it; None if they do.

    It was measured by an index that was built otherwise. With `kept`, of another generation.
    """
    measured = kept or kept_effort(connection, pipeline)
    return None if connection.value(USED, (pipeline.id,)) else measured


def kept_effort(connection: Connection, pipeline: Pipeline) -> int | None:
    """Return the ef_search that was measured last, or None."""
    found: int | None = connection.value(KEPT, (pipeline.id,))
    return found


def _index_of(connection: Connection, pipeline: Pipeline, relation: Relation) -> str:
    for index in vector_indexes(connection, pipeline):
        if index.valid and index.quantize == relation.scan:
            if index.method == "hnsw":
                return index.name
            raise UsageError(
                f"{pipeline.name} is searched by {index}, and what is evaluated is the ef_search of"
                f" an hnsw index; build one: {command('index', pipeline.name)}"
            )
    raise UsageError(
        f"{pipeline.name} has no vector index, so that its searches are exact; build one:"
        f" {command('index', pipeline.name)}"
    )


class _Searches:
    """The same searches again and again, each timed."""

    def __init__(
        self,
        connection: Connection,
        pipeline: Pipeline,
        relation: Relation,
        queries: Sequence[Query],
        k: int,
        on_progress: Callable[[str, int, int], None],
    ) -> None:
        self._connection = connection
        self._pipeline = pipeline
        self._relation = relation
        self._queries = queries
        self._k = k
        self._on_progress = on_progress

    def least_effort(self) -> int:
        """Return the least ef_search that a search for k uses."""
        # One more than k, since a stored chunk finds itself.
        value = self._connection.value(
            "select least(1000, pgembed.candidates(%s, %s))", (self._k + 1, self._relation.scan)
        )
        return int(value)

    def usual_effort(self) -> int:
        """Return the ef_search that a search for k uses."""
        with reading_chunks(self._connection, self._pipeline, COMPARING):
            self._connection.execute(
                "select pgembed.widen_scan(pipelines, %s, %s) from pgembed.pipelines where id = %s",
                (self._k, self._relation.scan, self._pipeline.id),
            )
            return int(self._connection.value("select current_setting('hnsw.ef_search')"))

    def run(
        self, what: str, statement: str, ef_search: int | None
    ) -> tuple[list[float], list[list[float]]]:
        """Return for each query the seconds of its search, and the distances of what was found."""
        times, found = [], []
        for number, query in enumerate(self._queries):
            with reading_chunks(self._connection, self._pipeline, COMPARING):
                if ef_search is not None:
                    self._prefer_index(ef_search)
                with RawCursor(self._connection) as cursor:
                    started = time.perf_counter()
                    count = self._k + query.is_stored
                    rows = cursor.execute(statement, (query.vector, count)).fetchall()
                    times.append(time.perf_counter() - started)
            found.append([row[5] for row in rows])
            self._on_progress(what, number + 1, len(self._queries))
        return times, found

    def _prefer_index(self, ef_search: int) -> None:
        self._connection.execute(
            "select pgembed.widen_scan(pipelines, %s, %s), set_config('hnsw.ef_search', %s, true),"
            " set_config('enable_seqscan', 'off', true), set_config('enable_sort', 'off', true)"
            " from pgembed.pipelines where id = %s",
            (self._k, self._relation.scan, str(ef_search), self._pipeline.id),
        )


def _effort(
    queries: Sequence[Query],
    ef_search: int | None,
    times: Sequence[float],
    truth: Sequence[Sequence[float]],
    found: Sequence[Sequence[float]],
    k: int,
) -> Effort:
    shares: dict[bool, list[float]] = {True: [], False: []}
    for query, nearest, hits in zip(queries, truth, found, strict=True):
        share = recall_of(nearest, hits, k, without_itself=query.is_stored)
        if share is not None:
            shares[query.is_stored].append(share)
    (recall, recall_error), (query_recall, query_recall_error) = (
        _mean_and_error(shares[is_stored]) for is_stored in (True, False)
    )
    return Effort(
        ef_search=ef_search,
        recall=recall,
        recall_error=recall_error,
        query_recall=query_recall,
        query_recall_error=query_recall_error,
        p50_seconds=float(np.percentile(times, 50)),
        p95_seconds=float(np.percentile(times, 95)),
    )


def _mean_and_error(shares: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the mean and its standard error, which one value does not tell; None of none."""
    if not shares:
        return None, None
    error = float(np.std(shares, ddof=1)) / len(shares) ** 0.5 if len(shares) > 1 else None
    return float(np.mean(shares)), error


def recall_of(
    truth: Sequence[float], found: Sequence[float], k: int, *, without_itself: bool
) -> float | None:
    """Return the share of the k nearest that was found, by distances in order, nearest first.

    Of chunks that are equally far any will do. Without itself, the nearest one, a query is for the
    k others. None where nothing is to be found.
    """
    nearest = list(truth[: k + without_itself])
    wanted = len(nearest) - without_itself
    if wanted <= 0:
        return None
    right = sum(distance <= nearest[-1] + ROUNDING for distance in found)
    if without_itself and found and found[0] <= nearest[0] + ROUNDING:
        right -= 1
    return min(right, wanted) / wanted
