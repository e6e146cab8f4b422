"""A few sessions in the database, for all searches: each as it was when it was opened."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from pgqueue_embed.db.migrate import check_schema
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import DatabaseUnavailable
from pgqueue_embed.vector_search.rights import naming_missing_rights

# Searches keep a core of the server busy each; more of them at once are not faster.
MOST_SESSIONS = 8

Answer = TypeVar("Answer")


class Sessions:
    """Sessions that are lent to one caller at a time, MOST_SESSIONS of which are kept in between.

    They end with this object, if not before. What a process inherited by a fork is its parent's.
    """

    def __init__(
        self, conninfo: str, *, application_name: str, patience_seconds: float | None = None
    ) -> None:
        self._conninfo = conninfo
        self._application_name = application_name
        self._patience_seconds = patience_seconds
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._is_closed = False
        self._pid = os.getpid()
        weakref.finalize(self, _end, self._idle, self._pid)

    def run(self, work: Callable[[Connection], Answer]) -> Answer:
        """Return what `work` reads; it is done again where a session was lost while it lay idle.

        Raises DatabaseUnavailable where there is no connection, and whatever `work` does.
        """
        while True:
            connection = self._take()
            is_used = connection is not None
            connection = connection or self._open()
            try:
                answer = work(connection)
            except (psycopg.OperationalError, DatabaseUnavailable):
                if not (is_used and connection.closed):
                    self._give_back(connection)
                    raise
            except BaseException:
                self._give_back(connection)
                raise
            else:
                self._give_back(connection)
                return answer

    def close(self) -> None:
        """End all sessions, those that are lent once they come back; none is kept from now on."""
        with self._lock:
            self._is_closed = True
            _end(self._idle, self._pid)

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
        return connection

    def _give_back(self, connection: Connection) -> None:
        is_idle = (
            not connection.closed and connection.info.transaction_status == TransactionStatus.IDLE
        )
        with self._lock:
            has_room = len(self._idle) < MOST_SESSIONS and not self._is_closed
            if is_idle and has_room and self._pid == os.getpid():
                self._idle.append(connection)
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
