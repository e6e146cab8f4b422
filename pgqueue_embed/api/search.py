"""Search from a program: over sessions that are kept, or its own connection, awaited or not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import psycopg
from numpy.typing import NDArray
from psycopg.pq import TransactionStatus

from pgqueue_embed.api.arguments import given_columns, pipeline_name
from pgqueue_embed.api.explained import explained
from pgqueue_embed.api.pipeline import Pipeline
from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.steps import read_on, read_on_async
from pgqueue_embed.errors import DatabaseUnavailable, PipelineReplaced, UsageError
from pgqueue_embed.pipeline.key_values import RecordKey
from pgqueue_embed.pipeline.option import shown
from pgqueue_embed.vector_search.asked import Asked, Read, SearchPlan, search_plan
from pgqueue_embed.vector_search.hit import Hit
from pgqueue_embed.vector_search.known import Known
from pgqueue_embed.vector_search.options import OrderOptions, request_of
from pgqueue_embed.vector_search.request import SearchRequest
from pgqueue_embed.vector_search.sessions import Sessions, forget_what_was_set

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool, ConnectionPool


def search(
    pipeline: Pipeline,
    query: str | None = None,
    *,
    vector: Sequence[float] | NDArray[Any] | None = None,
    record: RecordKey | None = None,
    limit: int = SearchRequest.limit,
    offset: int = SearchRequest.offset,
    threshold: float = SearchRequest.threshold,
    where: str | None = None,
    columns: Sequence[str] = (),
    per_record: bool = False,
    rerank: str | None = None,
    rerank_top: int = SearchRequest.rerank_top,
    mmr: float | None = None,
    device: str = OrderOptions.device,
    hybrid: bool = False,
    hybrid_weight: float | None = None,
    connection: psycopg.Connection[Any] | None = None,
    pool: ConnectionPool[Any] | None = None,
) -> list[Hit]:
    """Return up to `limit` chunks nearest in meaning to `query`, best first, behind `offset`.

    Instead of words, `vector` is one of the pipeline's model, shape (dimensions,), and `record` the
    key of a record whose like is wanted, in its own type or as text: it is not found itself. Found
    are chunks with a cosine similarity of at least `threshold`, -1, for all, to 1, for which the
    SQL condition `where` over columns of source and target holds: never fewer than there are. Each
    hit has the values of `columns`. With `per_record` a record is found once, by its best chunk,
    and `matched` counts those that reach the threshold. Words go through the pipeline's own model,
    on the CPU of this machine, loaded at the first search of the process. The `rerank_top` nearest
    are ordered by the cross-encoder `rerank`, a name or a folder, on `device`, and with `mmr`, 1
    for relevance alone to 0, for variety. With `hybrid`, what has the query's words is found, too:
    they weigh `hybrid_weight`, 0 to 1, or what the pipeline has.

    It is read over a session that the pipeline's database keeps for searches, over `connection` or
    over one of `pool`, where neither a setting nor a lock stays behind, in a transaction of yours
    as well. Raises PgembedError, whose `status` tells the kind: 400 for a query without text or a
    condition that PostgreSQL refuses, 403 with the GRANT, 404 for a pipeline or record that is not
    there, 503 where the database or the model is not to be had.

    Example::

        for hit in search(reports, "battery overheated", where="event_type = 'D'"):
            print(hit.score, hit.key, hit.chunk)
    """
    with explained():
        _check_pipeline(pipeline)
        asked = _asked(locals(), connection, pool)
        reader = _reader(pipeline.sessions, connection, pool, keeps=where is None)
        known = _known_over(pipeline.sessions, connection, pool)
        return _run(search_plan(pipeline_name(pipeline.name), asked, known), reader)


async def search_async(
    pipeline: Pipeline,
    query: str | None = None,
    *,
    vector: Sequence[float] | NDArray[Any] | None = None,
    record: RecordKey | None = None,
    limit: int = SearchRequest.limit,
    offset: int = SearchRequest.offset,
    threshold: float = SearchRequest.threshold,
    where: str | None = None,
    columns: Sequence[str] = (),
    per_record: bool = False,
    rerank: str | None = None,
    rerank_top: int = SearchRequest.rerank_top,
    mmr: float | None = None,
    device: str = OrderOptions.device,
    hybrid: bool = False,
    hybrid_weight: float | None = None,
    connection: psycopg.AsyncConnection[Any] | None = None,
    pool: AsyncConnectionPool[Any] | None = None,
) -> list[Hit]:
    """Do what `search` does, without keeping the event loop: the same arguments and results.

    `connection` and `pool` are psycopg's asynchronous ones; what a model computes, it computes in
    another thread. Without either it is read there, too.

    Example::

        hits = await search_async(reports, "battery overheated", pool=pool)
    """
    with explained():
        _check_pipeline(pipeline)
        asked = _asked(locals(), connection, pool)
        reader = _async_reader(pipeline.sessions, connection, pool, keeps=where is None)
        known = _known_over(pipeline.sessions, connection, pool)
        return await _run_async(search_plan(pipeline_name(pipeline.name), asked, known), reader)


def _check_pipeline(pipeline: object) -> None:
    if not isinstance(pipeline, Pipeline):
        raise UsageError(
            f"pipeline {shown(pipeline)}: give one, such as Database(…).pipeline(name)"
        )


def _asked(given: Mapping[str, Any], connection: object, pool: object) -> Asked:
    if connection is not None and pool is not None:
        raise UsageError("connection and pool: give one of them")
    request = request_of(
        given["query"], {**given, "columns": given_columns("columns", given["columns"])}
    )
    if given["hybrid"] and given["query"] is None:
        raise UsageError("hybrid finds by words, too; give a query, in words")
    return Asked(
        request=request,
        query=given["query"],
        vector=given["vector"],
        record=given["record"],
        rerank=given["rerank"],
        device=given["device"],
    )


# Of connections and pools of a program's.
_known: WeakKeyDictionary[object, Known] = WeakKeyDictionary()


def _known_over(
    sessions: Sessions, connection: psycopg.BaseConnection[Any] | None, pool: object
) -> Known:
    """Return what is known of pipelines over what a search is made over.

    A transaction of a program's may see what it has changed itself, and no other session does yet.
    """
    if connection is None and pool is None:
        return sessions.known
    if connection is not None and connection.info.transaction_status != TransactionStatus.IDLE:
        return Known()
    try:
        return _known.setdefault(pool if connection is None else connection, Known())
    except TypeError:  # it cannot be noted, and may be no pool at all
        return Known()


Reader = Callable[[Read], Any]
AsyncReader = Callable[[Read], Awaitable[Any]]


def _reader(
    sessions: Sessions,
    connection: psycopg.Connection[Any] | None,
    pool: ConnectionPool[Any] | None,
    *,
    keeps: bool,
) -> Reader:
    def over_pool(read: Read, *, is_first: bool = True) -> Any:
        lent: Any = None
        try:
            with _lending(pool, "__enter__") as lent:
                return read_on(lent, read.steps(lent))
        except LOST:
            if pool is None or not (is_first and _is_lost(lent)):
                raise
        pool.check()
        return over_pool(read, is_first=False)

    if pool is not None:
        return over_pool
    if connection is not None:
        _check_connection(connection, psycopg.Connection)
        return lambda read: read_on(connection, read.steps(connection))
    return lambda read: sessions.run(_over_session(read, keeps=keeps))


def _async_reader(
    sessions: Sessions,
    connection: psycopg.AsyncConnection[Any] | None,
    pool: AsyncConnectionPool[Any] | None,
    *,
    keeps: bool,
) -> AsyncReader:
    async def over_pool(read: Read, *, is_first: bool = True) -> Any:
        lent: Any = None
        try:
            async with _lending(pool, "__aenter__") as lent:
                return await read_on_async(lent, read.steps(lent))
        except LOST:
            if pool is None or not (is_first and _is_lost(lent)):
                raise
        await pool.check()
        return await over_pool(read, is_first=False)

    if pool is not None:
        return over_pool
    if connection is not None:
        _check_connection(connection, psycopg.AsyncConnection)
        return lambda read: read_on_async(connection, read.steps(connection))
    return lambda read: sessions.awaited(_over_session(read, keeps=keeps))


LOST = (psycopg.OperationalError, DatabaseUnavailable)


def _is_lost(lent: psycopg.BaseConnection[Any] | None) -> bool:
    """Return whether a connection of a pool was lost: after a restart of the server, all are."""
    return lent is not None and lent.closed


def _check_connection(given: object, wanted: type) -> None:
    if not isinstance(given, wanted):
        raise UsageError(f"connection {shown(given)}: give a psycopg.{wanted.__name__}")


def _lending(pool: Any, enter: str) -> Any:
    """Return what lends a connection of `pool` while it is entered; raises UsageError."""
    lends = getattr(pool, "connection", None)
    lending = lends() if callable(lends) else None
    if not hasattr(lending, enter):
        kind = "ConnectionPool" if enter == "__enter__" else "AsyncConnectionPool"
        raise UsageError(f"pool {shown(pool)}: give a psycopg_pool.{kind}")
    return lending


def _over_session(read: Read, *, keeps: bool) -> Callable[[Connection], Any]:
    def work(connection: Connection) -> Any:
        try:
            return read_on(connection, read.steps(connection))
        finally:
            if not keeps:
                forget_what_was_set(connection)

    return work


def _run(plan: SearchPlan, reader: Reader) -> list[Hit]:
    try:
        part = next(plan)
        while True:
            try:
                done = reader(part) if isinstance(part, Read) else part.work()
            except PipelineReplaced as error:
                part = plan.throw(error)
            else:
                part = plan.send(done)
    except StopIteration as end:
        hits: list[Hit] = end.value
        return hits


async def _run_async(plan: SearchPlan, reader: AsyncReader) -> list[Hit]:
    try:
        part = next(plan)
        while True:
            try:
                if isinstance(part, Read):
                    done = await reader(part)
                else:
                    done = await asyncio.to_thread(part.work)
            except PipelineReplaced as error:
                part = plan.throw(error)
            else:
                part = plan.send(done)
    except StopIteration as end:
        hits: list[Hit] = end.value
        return hits
