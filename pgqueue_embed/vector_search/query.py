"""Semantic search in a pipeline's vectors: the query's vector, and the chunks nearest to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql

from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.extension import VectorExtension, vector_extension
from pgqueue_embed.db.faults import on_users_tables
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import (
    PipelineFault,
    PipelineReplaced,
    UntrustedCode,
    UsageError,
)
from pgqueue_embed.pipeline.catalog import is_current
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.source.trust import trusting
from pgqueue_embed.target import target_of
from pgqueue_embed.vector_search.index import vector_indexes
from pgqueue_embed.vector_search.relation import relation_of
from pgqueue_embed.vector_search.request import SearchRequest


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A chunk that answers a query; `score` is the cosine similarity, -1 to 1.

    `chunk` is verbatim: the document's characters from `start_char` up to `end_char`. In a table
    that is being adopted, a chunk that was not found right yet may have no index and offsets.
    `columns` are those that were asked for. Where a record was to be found once, `matched` counts
    its chunks that reach the threshold.
    """

    key: str
    score: float
    chunk_index: int | None
    start_char: int | None
    end_char: int | None
    chunk: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    matched: int | None = None


# Ordered by the operator itself, so that the index is used; ordered again because an iterative
# ivfflat scan returns rows in roughly this order only.
SEARCH = """
with nearest as materialized (
    select
        {key} as key,
        {chunk_index} as chunk_index,
        {start_char} as start_char,
        {end_char} as end_char,
        {text_chunk} as chunk,
        {distance} as distance{columns}
    from {tables}
    where {condition}
    order by {order}
    limit %(limit)s
)
select *
from nearest
order by distance, key, chunk_index
"""

# Settings of this transaction alone; in SQL, since what people call in psql needs them, too.
WIDEN = "select pgembed.widen_scan(pipelines, %(count)s) from pgembed.pipelines where id = %(id)s"

# How many chunks of a record a search for it would find.
MATCHED = """
select {key}, count(*)
from {tables}
where {condition} and {key_is_among_keys} and 1 - ({distance}) >= %(threshold)s
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
) -> list[Hit]:
    """Return the chunks that `request` asks for, best first: never fewer than there are.

    `query_vector` has shape (dimensions,). Raises PipelineReplaced if the next generation, to which
    the query's vector may mean nothing, has just taken over; UsageError for a request that cannot
    be, or a target table that is not there or may not be read.
    """
    request.check()
    extension = vector_extension(connection)
    try:
        with (
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
            scan = _Scan(connection, pipeline, query_vector, request, extension)
            hits = _best_of_records(scan) if request.per_record else _best(scan)
            _check_present(connection, pipeline)
            return hits
    except UntrustedCode:
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
        extension: VectorExtension,
    ) -> None:
        self.request = request
        self._connection = connection
        self._pipeline = pipeline
        self._extension = extension
        self._indexes = vector_indexes(connection, pipeline)
        self._relation = relation_of(connection, pipeline, request)
        self._vector = "[" + ",".join(map(repr, query_vector.tolist())) + "]"

    def nearest(self, count: int) -> list[Hit]:
        """Return the `count` nearest chunks of those that the condition lets in, or all."""
        self._connection.execute(WIDEN, {"id": self._pipeline.id, "count": count})
        hits = self._run(count, self._distance)
        # An index gives up at some time: with a rare condition, before it has found them all.
        if len(hits) < count and self._indexes:
            hits = self._run(count, sql.SQL("({}) + 0").format(self._distance))
        return hits

    def matched(self, keys: Sequence[str]) -> dict[str, int]:
        """Return how many chunks of each record reach the threshold."""
        query = sql.SQL(MATCHED).format(
            key=self._key,
            tables=self._relation.tables,
            condition=self._relation.condition,
            distance=self._distance,
            key_is_among_keys=self._pipeline.key.among("chunk", self._relation.key_names, "keys"),
        )
        values = {
            "keys": list(keys),
            "threshold": self.request.threshold,
            "query": self._vector,
        }
        return dict(self._connection.execute(query, values).fetchall())

    def _run(self, count: int, order: sql.Composable) -> list[Hit]:
        relation = self._relation
        columns = [
            sql.SQL(", {} as {}").format(column, sql.Identifier(f"pgembed_column_{number}"))
            for number, column in enumerate(relation.columns)
        ]
        query = sql.SQL(SEARCH).format(
            key=self._key,
            chunk_index=relation.part("chunk_index"),
            start_char=relation.part("start_char"),
            end_char=relation.part("end_char"),
            text_chunk=relation.part("text_chunk"),
            distance=self._distance,
            columns=sql.SQL("").join(columns),
            tables=relation.tables,
            condition=relation.condition,
            order=order,
        )
        values = {"query": self._vector, "limit": count}
        return [self._hit(row) for row in self._connection.execute(query, values)]

    @property
    def _key(self) -> sql.Composable:
        return self._pipeline.key.text("chunk", self._relation.key_names)

    @property
    def _distance(self) -> sql.Composable:
        schema = self._extension.schema
        return sql.SQL("{} operator({}.<=>) %(query)s::{}").format(
            self._relation.part("embedding"),
            sql.Identifier(schema),
            sql.Identifier(schema, self._pipeline.spec.vector_type),
        )

    def _hit(self, row: tuple[Any, ...]) -> Hit:
        key, chunk_index, start_char, end_char, chunk, distance, *values = row
        return Hit(
            key=key,
            score=1 - distance,
            chunk_index=chunk_index,
            start_char=start_char,
            end_char=end_char,
            chunk=chunk,
            columns=dict(zip(self.request.columns, values, strict=True)),
        )


def _best(scan: _Scan) -> list[Hit]:
    request = scan.request
    found = scan.nearest(request.offset + request.limit)
    return [hit for hit in found if hit.score >= request.threshold][request.offset :]


def _best_of_records(scan: _Scan) -> list[Hit]:
    """Return the best chunk of each record; looks at more chunks until there are enough records."""
    request = scan.request
    wanted = request.offset + request.limit
    count = 4 * wanted
    while True:
        found = scan.nearest(count)
        best: dict[str, Hit] = {}
        for hit in found:
            if hit.score >= request.threshold:
                best.setdefault(hit.key, hit)
        if len(best) >= wanted or len(found) < count or found[-1].score < request.threshold:
            break
        count *= 4
    hits = list(best.values())[request.offset : wanted]
    matched = scan.matched([hit.key for hit in hits])
    return [replace(hit, matched=matched[hit.key]) for hit in hits]


def _check_present(connection: Connection, pipeline: Pipeline) -> None:
    """Raise PipelineReplaced unless the table just read, locked by that, is the pipeline's own."""
    if not is_current(connection, pipeline):
        raise PipelineReplaced(
            f"{pipeline.name} was replaced by its next generation, or dropped, just now; search"
            " again"
        )


def has_vectors(connection: Connection, pipeline: Pipeline) -> bool:
    """Return whether there is anything to find; raises UsageError when the target is gone."""
    query = sql.SQL("select exists (select 1 from {} as target)").format(target_of(pipeline).rows)
    try:
        with (
            trusting(connection, pipeline.spec, searching=True),
            on_users_tables(connection, _SEARCHING),
            connection.transaction(),
        ):
            connection.execute(WHAT_ONE_MAY_SEE)
            found = connection.value(query, ())
    except UntrustedCode:
        raise
    except PipelineFault as error:
        raise UsageError(f"cannot search {pipeline.target}: {error}") from None
    return bool(found)
