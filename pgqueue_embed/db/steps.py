"""Reads apart from the driver that sends them: statements, and what follows from their rows.

A search is one such generator. psycopg's connections of both kinds send it, a program's own as
well: there it is a transaction, or a savepoint in one, that is rolled back, so that neither a
setting nor a lock of ours stays behind.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakSet

import psycopg
from psycopg import sql
from psycopg.abc import Params
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.rows import tuple_row

from pgqueue_embed.db.packed import PackedArray, PackedArrayDumper
from pgqueue_embed.db.session import (
    READ_COMMITTED,
    SESSION_SETTINGS,
    Connection,
    Cursor,
    RawCursor,
)
from pgqueue_embed.errors import PgembedError, UsageError

Answer = TypeVar("Answer")

# Of either kind: what makes steps may look at it, and sends nothing over it.
AnyConnection = psycopg.BaseConnection[Any]


@dataclass(frozen=True)
class Step:
    """A statement to send; with `raw`, its parameters are $1, $2, as PostgreSQL has them."""

    query: Any
    values: Params | None = None
    raw: bool = False
    binary: bool = False


Rows = list[tuple[Any, ...]]
Steps = Generator[Step, Rows, Answer]


def run(connection: psycopg.Connection[Any], steps: Steps[Answer]) -> Answer:
    """Send each step and return what they come to; errors are raised where they come."""
    try:
        step = next(steps)
        while True:
            kind = RawCursor if step.raw else Cursor
            try:
                with kind(connection, row_factory=tuple_row) as cursor:
                    _teach(cursor, step)
                    cursor.execute(step.query, step.values, binary=step.binary, prepare=False)
                    rows = cursor.fetchall() if _has_rows(cursor) else []
            except psycopg.Error as error:
                step = steps.throw(error)
            else:
                step = steps.send(rows)
    except StopIteration as end:
        answer: Answer = end.value
        return answer


async def run_async(connection: psycopg.AsyncConnection[Any], steps: Steps[Answer]) -> Answer:
    """Do what `run` does."""
    try:
        step = next(steps)
        while True:
            kind = psycopg.AsyncRawCursor if step.raw else psycopg.AsyncCursor
            try:
                async with kind(connection, row_factory=tuple_row) as cursor:
                    _teach(cursor, step)
                    await cursor.execute(step.query, step.values, binary=step.binary, prepare=False)
                    rows = await cursor.fetchall() if _has_rows(cursor) else []
            except psycopg.Error as error:
                step = steps.throw(error)
            else:
                step = steps.send(rows)
    except StopIteration as end:
        answer: Answer = end.value
        return answer


def _teach(cursor: psycopg.Cursor[Any] | psycopg.AsyncCursor[Any], step: Step) -> None:
    """Let a cursor send packed arrays; its connection may be a program's, and stays as it is."""
    if step.raw:
        cursor.adapters.register_dumper(PackedArray, PackedArrayDumper)


def _has_rows(cursor: psycopg.Cursor[Any] | psycopg.AsyncCursor[Any]) -> bool:
    """Return whether a statement gives rows; `description` makes an object of each column."""
    return cursor.pgresult is not None and cursor.pgresult.status == ExecStatus.TUPLES_OK


def read_on(connection: psycopg.Connection[Any], steps: Steps[Answer]) -> Answer:
    """Run `steps` so that they leave nothing behind, on a session of ours or of a user's."""
    with _alone(connection):
        steps = _with_our_settings(connection, steps)
        with connection.transaction(force_rollback=True):
            return run(connection, steps)


async def read_on_async(connection: psycopg.AsyncConnection[Any], steps: Steps[Answer]) -> Answer:
    """Do what `read_on` does."""
    with _alone(connection):
        steps = _with_our_settings(connection, steps)
        async with connection.transaction(force_rollback=True):
            return await run_async(connection, steps)


_in_use: WeakSet[AnyConnection] = WeakSet()


@contextmanager
def _alone(connection: AnyConnection) -> Iterator[None]:
    """Use a connection in the block; what two send at once would be in one another's savepoints."""
    if connection in _in_use:
        raise UsageError(
            "the connection is in another search at this moment; give each its own, or a pool"
        )
    _in_use.add(connection)
    try:
        yield
    finally:
        _in_use.discard(connection)


def _with_our_settings(connection: AnyConnection, steps: Steps[Answer]) -> Steps[Answer]:
    if isinstance(connection, Connection):
        return steps
    if connection.info.pipeline_status:
        raise UsageError(
            "the connection is in pipeline mode, which waits for no rows; leave it first"
        )
    status = connection.info.transaction_status
    if status == TransactionStatus.INERROR:
        raise UsageError("the connection is in a transaction that has failed; roll it back first")
    return _set_first(steps, begins=status == TransactionStatus.IDLE)


# What a session of ours has from its beginning.
LENT_SETTINGS = {"client_encoding": "UTF8", **SESSION_SETTINGS}

SET = (
    sql.SQL("select {}")
    .format(
        sql.SQL(", ").join(
            sql.SQL("pg_catalog.set_config({}, {}, true)").format(name, value)
            for name, value in LENT_SETTINGS.items()
        )
    )
    .as_string(None)
)


def _set_first(steps: Steps[Answer], *, begins: bool) -> Steps[Answer]:
    if begins:
        yield Step(READ_COMMITTED)
    yield Step(SET)
    if not begins:
        [(isolation,)] = yield Step("show transaction_isolation")
        if isolation != "read committed":
            # It would take the tables of now for those of its snapshot.
            raise UsageError(
                f"the connection is in a transaction that is {isolation}, which does not see that a"
                " pipeline was replaced meanwhile; search outside of it"
            )
    return (yield from steps)


def in_savepoint(connection: AnyConnection, steps: Steps[Answer]) -> Steps[Answer]:
    """Run `steps` in a transaction in which, after an error of theirs, more can be read."""
    yield Step("savepoint pgembed_steps")
    try:
        return (yield from steps)
    except (psycopg.Error, PgembedError):
        if not connection.closed:
            yield Step("rollback to savepoint pgembed_steps")
        raise


def sent(step: Step) -> Steps[Rows]:
    """Return the rows of one step."""
    return (yield step)
