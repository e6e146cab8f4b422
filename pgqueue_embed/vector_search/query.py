"""Semantic search in a pipeline's vectors: the chunks nearest to a query's, in the best order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql

from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.faults import on_users_tables
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, RawCursor
from pgqueue_embed.errors import (
    MissingRight,
    PipelineFault,
    PipelineReplaced,
    UntrustedCode,
    UsageError,
)
from pgqueue_embed.pipeline.catalog import is_current
from pgqueue_embed.pipeline.option import MOST_COUNT
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.source.trust import trusting
from pgqueue_embed.target import target_of
from pgqueue_embed.vector_search.relation import raw, relation_of
from pgqueue_embed.vector_search.request import SearchRequest
from pgqueue_embed.vector_search.rights import naming_missing_rights
from pgqueue_embed.vector_search.variety import read_vectors, scaled, varied


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A chunk that answers a query; `score` is the cosine similarity, -1 to 1.

    `chunk` is verbatim: the document's characters from `start_char` up to `end_char`. In a table
    that is being adopted, a chunk that was not found right yet may have no index and offsets.
    `columns` are those that were asked for. Where a record was to be found once, `matched` counts
    its chunks that reach the threshold. `rerank_score` is that of a re-ranking model, on a scale of
    its own, if it has read the chunk.
    """

    key: str
    score: float
    chunk_index: int | None
    start_char: int | None
    end_char: int | None
    chunk: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    matched: int | None = None
    rerank_score: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Candidate(Hit):
    """A hit that is compared with others by its vector, as pgvector writes it."""

    vector: str


# Returns how well each of some chunks answers the query, more for better.
Score = Callable[[Sequence[str]], NDArray[np.float32]]

# Settings of this transaction alone; in SQL, since what people call in psql needs them, too.
WIDEN = """
select pgembed.widen_scan(pipelines, %(count)s, %(scan)s)
from pgembed.pipelines
where id = %(id)s
"""

# How many chunks of a record a search for it would find.
MATCHED = """
select {key}, count(*)
from {relation}
where {condition} and {key_is_among_keys} and 1 - {distance} >= $2
group by 1
"""

# Nothing is taken for deleted here: who searches finds what the policies of the target let him see.
WHAT_ONE_MAY_SEE = "set local row_security = on"

# A condition is a person's own SQL, which may change nothing and not run for ever.
CONDITION_SECONDS = 60


def search(
    connection: Connection,
    pipeline: Pipeline,
    query_vector: NDArray[np.float32],
    request: SearchRequest,
    score: Score | None = None,
) -> list[Hit]:
    """Return the chunks that `request` asks for, best first: never fewer than there are.

    `query_vector` has shape (dimensions,). With `score` the first of them are ordered by that.
    Raises PipelineReplaced if the next generation, to which
    the query's vector may mean nothing, has just taken over; UsageError for a request that cannot
    be, or a target table that is not there, and MissingRight for one that may not be read.
    """
    request.check()
    if score is None and request.mmr is None:
        return _nearest(connection, pipeline, query_vector, request)
    # Of the same ones for each page, so that none is shown twice.
    top, wanted = request.rerank_top, request.offset + request.limit
    wide = replace(request, offset=0, limit=max(top, wanted))
    found = _nearest(connection, pipeline, query_vector, wide)
    ordered = [*_in_better_order(found[:top], request.mmr, score), *found[top:]]
    return [_plain(hit) for hit in ordered[request.offset : wanted]]


def _in_better_order(hits: Sequence[Hit], mmr: float | None, score: Score | None) -> Sequence[Hit]:
    relevance = np.array([hit.score for hit in hits], np.float32)
    if score is not None:
        scores = score([hit.chunk for hit in hits])
        best = np.argsort(-scores, kind="stable")
        hits = [replace(hits[at], rerank_score=float(scores[at])) for at in best]
        relevance = scaled(scores[best])
    if mmr is not None and hits:
        vectors = read_vectors([hit.vector for hit in hits if isinstance(hit, _Candidate)])
        hits = [hits[at] for at in varied(relevance, vectors, mmr)]
    return hits


def _plain(hit: Hit) -> Hit:
    return Hit(**{each.name: getattr(hit, each.name) for each in fields(Hit)})


def _nearest(
    connection: Connection,
    pipeline: Pipeline,
    query_vector: NDArray[np.float32],
    request: SearchRequest,
) -> list[Hit]:
    try:
        with (
            naming_missing_rights(connection, _tables(pipeline, request)),
            trusting(
                connection,
                pipeline.spec,
                where=request.where,
                searching=True,
                reads_source=request.reads_source,
            ),
            on_users_tables(connection, _SEARCHING),
            connection.transaction(),
        ):
            _prepare(connection, request)
            scan = _Scan(connection, pipeline, query_vector, request)
            hits = _best_of_records(scan) if request.per_record else _best(scan)
            _check_present(connection, pipeline)
            return hits
    except (UntrustedCode, MissingRight):
        raise
    except PipelineFault as error:
        # The vectors of another generation may be of another length, or have moved.
        _check_present(connection, pipeline)
        raise UsageError(f"cannot search {pipeline.target}: {error}") from None
    except psycopg.Error as error:
        if request.where is None or connection.closed:
            raise
        raise UsageError(f"--where cannot be searched by: {first_line(error)}") from None


_SEARCHING = "comparing its vectors"


def _tables(pipeline: Pipeline, request: SearchRequest) -> list[Table]:
    return [pipeline.target, *([pipeline.source] if request.reads_source else [])]


def _prepare(connection: Connection, request: SearchRequest) -> None:
    connection.execute(WHAT_ONE_MAY_SEE)
    if request.where is not None:
        connection.execute("set local transaction_read_only = on")
        connection.execute(f"set local statement_timeout = '{CONDITION_SECONDS}s'")


class _Scan:
    """The nearest chunks of one query, by the index where there is one, and exactly if need be."""

    def __init__(
        self,
        connection: Connection,
        pipeline: Pipeline,
        query_vector: NDArray[np.float32],
        request: SearchRequest,
    ) -> None:
        self.request = request
        self._connection = connection
        self._pipeline = pipeline
        found = relation_of(connection, pipeline, request)
        if found is None:
            raise _replaced(pipeline)
        self._relation = found
        self._vector = "[" + ",".join(map(repr, query_vector.tolist())) + "]"

    def nearest(self, count: int) -> list[Hit]:
        """Return the `count` nearest chunks of those that the condition lets in, or all."""
        scan = self._relation.scan
        values = {"id": self._pipeline.id, "count": count, "scan": scan}
        self._connection.execute(WIDEN, values)
        rows = self._run(self._relation.statement, count)
        # An index gives up at some time: with a rare condition, before it has found them all.
        is_enough = bool(rows) and rows[0][-1]
        if scan != "exact" and not is_enough:
            rows = self._run(self._relation.exact_statement, count)
        return [self._hit(row) for row in rows]

    def matched(self, keys: Sequence[str]) -> dict[str, int]:
        """Return how many chunks of each record reach the threshold."""
        key = self._pipeline.key
        key_names = [f"pgembed_{name}" for name in key.positions]
        query = MATCHED.format(
            key=self._relation.key,
            relation=self._relation.relation,
            condition=f"({self.request.where or 'true'}\n)",
            distance=self._relation.distance,
            key_is_among_keys=raw(key.among("chunk", key_names, "keys")).replace("%(keys)s", "$3"),
        )
        return dict(self._execute(query, self._vector, self.request.threshold, list(keys)))

    def _run(self, statement: str, count: int) -> list[tuple[Any, ...]]:
        return self._execute(statement, self._vector, count)

    def _execute(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with RawCursor(self._connection) as cursor:
            # It is made of names that PostgreSQL has quoted, and of what a person may say.
            return cursor.execute(statement, values).fetchall()

    def _hit(self, row: tuple[Any, ...]) -> Hit:
        key, chunk_index, start_char, end_char, chunk, distance, *values, _ = row
        vector = values.pop() if self.request.mmr is not None else None
        found = {
            "key": key,
            "score": 1 - distance,
            "chunk_index": chunk_index,
            "start_char": start_char,
            "end_char": end_char,
            "chunk": chunk,
            "columns": dict(zip(self.request.columns, values, strict=True)),
        }
        return Hit(**found) if vector is None else _Candidate(**found, vector=vector)


def _best(scan: _Scan) -> list[Hit]:
    request = scan.request
    found = scan.nearest(min(request.offset + request.limit, MOST_COUNT))
    return [hit for hit in found if hit.score >= request.threshold][request.offset :]


def _best_of_records(scan: _Scan) -> list[Hit]:
    """Return the best chunk of each record; looks at more chunks until there are enough records."""
    request = scan.request
    wanted = request.offset + request.limit
    count = min(4 * wanted, MOST_COUNT)
    while True:
        found = scan.nearest(count)
        best: dict[str, Hit] = {}
        for hit in found:
            if hit.score >= request.threshold:
                best.setdefault(hit.key, hit)
        if len(best) >= wanted or len(found) < count or found[-1].score < request.threshold:
            break
        count = min(4 * count, MOST_COUNT)
    hits = list(best.values())[request.offset : wanted]
    matched = scan.matched([hit.key for hit in hits])
    return [replace(hit, matched=matched[hit.key]) for hit in hits]


def _check_present(connection: Connection, pipeline: Pipeline) -> None:
    """Raise PipelineReplaced unless the table just read, locked by that, is the pipeline's own."""
    if not is_current(connection, pipeline):
        raise _replaced(pipeline)


def _replaced(pipeline: Pipeline) -> PipelineReplaced:
    return PipelineReplaced(
        f"{pipeline.name} was replaced by its next generation, or dropped, just now; search again"
    )


def has_vectors(connection: Connection, pipeline: Pipeline) -> bool:
    """Return whether there is anything to find; raises UsageError when the target is gone."""
    query = sql.SQL("select exists (select 1 from {} as target)").format(target_of(pipeline).rows)
    try:
        with (
            naming_missing_rights(connection, [pipeline.target]),
            trusting(connection, pipeline.spec, searching=True),
            on_users_tables(connection, _SEARCHING),
            connection.transaction(),
        ):
            connection.execute(WHAT_ONE_MAY_SEE)
            found = connection.value(query, ())
    except (UntrustedCode, MissingRight):
        raise
    except PipelineFault as error:
        raise UsageError(f"cannot search {pipeline.target}: {error}") from None
    return bool(found)
