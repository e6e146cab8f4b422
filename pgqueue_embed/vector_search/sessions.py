"""A few sessions in the database, for all searches: each as it was when it was opened."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor
from typing import TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from pgqueue_embed.db.migrate import check_schema
from pgqueue_embed.db.session import Connection, NoRoom, connect
from pgqueue_embed.errors import DatabaseUnavailable
from pgqueue_embed.vector_search.known import Known
from pgqueue_embed.vector_search.rights import naming_missing_rights

# Searches keep a core of the server busy each; more of them at once are not faster.
MOST_SESSIONS = 8

# A server that has no room for another session may have some as soon as any client of it leaves.
POLL_SECONDS = 0.25

Answer = TypeVar("Answer")


class _Lending:
    """A session that is lent to one caller, who may leave meanwhile: what it runs ends then."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self.is_left = False

    def begin(self, connection: Connection) -> None:
        """Take what is lent; raises CancelledError where no caller waits for it any more."""
        with self._lock:
            if self.is_left:
                raise CancelledError
            self._connection = connection

    def end(self) -> None:
        """Let it go, so that nothing of its next caller's is cancelled."""
        with self._lock:
            self._connection = None

    def leave(self) -> None:
        """Cancel what it runs, from another thread."""
        with self._lock:
            self.is_left = True
            if self._connection is not None:
                self._connection.request_cancel()


class Sessions:
    """Sessions that are lent to one caller at a time, MOST_SESSIONS of which are kept in between.

    They end with this object, if not before. What a process inherited by a fork is its parent's.
    `known` is what is known of the pipelines there. Each session that is opened is handed to
    `opened`.
    """

    def __init__(
        self,
        conninfo: str,
        *,
        application_name: str,
        patience_seconds: float | None = None,
        opened: Callable[[Connection], None] = lambda _: None,
    ) -> None:
        self.known = Known()
        self._opened = opened
        self._conninfo = conninfo
        self._application_name = application_name
        self._patience_seconds = patience_seconds
        self._lock = threading.Lock()
        self._given_back = threading.Condition(self._lock)
        self._idle: list[Connection] = []
        self._is_closed = False
        self._pid = os.getpid()
        weakref.finalize(self, _end, self._idle, self._pid)

    def run(self, work: Callable[[Connection], Answer]) -> Answer:
        """Return what `work` reads; it is done again where a session was lost while it lay idle.

        Where the server has no room for another session, it waits for one, for `patience_seconds`.
        Raises DatabaseUnavailable where there is no connection, and whatever `work` does.
        """
        return self._run(work, _Lending())

    async def awaited(
        self, work: Callable[[Connection], Answer], executor: Executor | None = None
    ) -> Answer:
        """Do what `run` does in a thread of `executor`.

        Where whoever awaits it is cancelled, PostgreSQL is told to end what it runs for them.
        """
        lending = _Lending()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(executor, self._run, work, lending)
        except asyncio.CancelledError:
            threading.Thread(target=lending.leave, daemon=True).start()
            raise

    def _run(self, work: Callable[[Connection], Answer], lending: _Lending) -> Answer:
        while True:
            connection, is_used = self._lent(lending)
            try:
                lending.begin(connection)
                answer = work(connection)
            except (psycopg.OperationalError, DatabaseUnavailable):
                if not (is_used and connection.closed):
                    raise
            else:
                return answer
            finally:
                lending.end()
                self._give_back(connection, is_left=lending.is_left)

    def close(self) -> None:
        """End all sessions, those that are lent once they come back; none is kept from now on."""
        with self._lock:
            self._is_closed = True
            _end(self._idle, self._pid)

    def _lent(self, lending: _Lending) -> tuple[Connection, bool]:
        """Return a session, and whether it was used before."""
        deadline = time.monotonic() + (self._patience_seconds or 0.0)
        while True:
            kept = self._take()
            try:
                return (self._open(), False) if kept is None else (kept, True)
            except NoRoom:
                if lending.is_left:
                    raise CancelledError from None
                if time.monotonic() + POLL_SECONDS >= deadline:
                    raise
            with self._given_back:
                self._given_back.wait_for(lambda: self._idle, POLL_SECONDS)

    def _take(self) -> Connection | None:
        with self._lock:
            return self._idle.pop() if self._idle and self._pid == os.getpid() else None

    def _open(self) -> Connection:
        connection = connect(
            self._conninfo,
            application_name=self._application_name,
            patience_seconds=self._patience_seconds,
        )
        try:
            with naming_missing_rights(connection):
                check_schema(connection)
        except BaseException:
            connection.close()
            raise
        self._opened(connection)
        return connection

    def _give_back(self, connection: Connection, *, is_left: bool) -> None:
        is_idle = (
            not connection.closed and connection.info.transaction_status == TransactionStatus.IDLE
        )
        with self._lock:
            has_room = len(self._idle) < MOST_SESSIONS and not self._is_closed
            # A request to cancel may still be on its way to a session that was left.
            is_fit = is_idle and not is_left and self._pid == os.getpid()
            if is_fit and has_room:
                self._idle.append(connection)
                self._given_back.notify()
                return
        connection.close()


def _end(idle: list[Connection], pid: int) -> None:
    while idle and pid == os.getpid():
        idle.pop().close()


def forget_what_was_set(connection: Connection) -> None:
    """Make a session as it was: a condition of a person's may have called set_config, or locked.

    Behind a pooler each transaction makes its settings anyway.
    """
    if connection.closed or connection.pooled:
        return
    connection.execute("discard all")
    connection.pin_settings()
