"""Sessions of PostgreSQL: how they are opened, pinned and limited."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, TypeVar

import psycopg
from psycopg import sql
from psycopg.abc import Params
from psycopg.pq import TransactionStatus

from pgqueue_embed.db import applications
from pgqueue_embed.db.dsn import describe_dsn, how_to_reach, place_if_private, place_of
from pgqueue_embed.db.errors import first_line, is_no_room, is_nothing_there
from pgqueue_embed.db.names import Table
from pgqueue_embed.errors import DatabaseUnavailable, UsageError

Answer = TypeVar("Answer")
Statement = str | sql.SQL | sql.Composed

# What it has to say unasked is that a lost connection could not be rolled back: log.configure
# takes it in, and without a log it is not wanted.
logging.getLogger("psycopg").addHandler(logging.NullHandler())

# Whatever changes how a value is spelled. A text with another hash is embedded again, so that a
# document, a key or what a view makes of a number has to be the same for every machine and role.
TEXT_SETTINGS = {
    "datestyle": "ISO, YMD",
    "timezone": "UTC",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "lc_monetary": "C",
    "bytea_output": "hex",
    "xmlbinary": "base64",
}

# A function or operator that another role created in a schema on our path could fit our arguments
# better than PostgreSQL's own, and would run with our rights. pg_temp is named, since it would
# come first otherwise. Rows that a policy hides would pass for deleted ones: with row_security off,
# PostgreSQL raises an error instead. The isolation is for a single statement, without a BEGIN.
# Constraints of tables that are read stay out of plans, which would run what is immutable in them.
SESSION_SETTINGS = {
    "search_path": "pg_catalog, pg_temp",
    "row_security": "off",
    "default_transaction_isolation": "read committed",
    "constraint_exclusion": "off",
    **TEXT_SETTINGS,
}

# The isolation of a transaction that has begun is not that of these settings.
READ_COMMITTED = "set transaction isolation level read committed"

# A pooler has told us a process id of its own making.
PIN_SESSION = """
select {settings}
where pg_catalog.pg_backend_pid() operator(pg_catalog.=) %s::pg_catalog.int4
"""

# What ends a session or a statement of ours at a time that was meant for others, where a role, a
# database or a server has it: the first version of PostgreSQL that knows it. Zero is never.
TIMEOUTS = {
    "statement_timeout": 0,
    "lock_timeout": 0,
    "idle_in_transaction_session_timeout": 0,
    "idle_session_timeout": 140_000,
    "transaction_timeout": 170_000,
}

# The server's own timeouts come first; only silence gets so far.
GRACE_SECONDS = 2.0

# A server that does not take a request to cancel in this time is left to its own timeouts.
CANCEL_SECONDS = 2.0

# How long a statement about pgembed's own small tables may take.
BOOKKEEPING_SECONDS = 60.0

# A dead peer is noticed within 15 + 3 × 5 seconds, far below any lease.
KEEPALIVE: dict[str, Any] = {
    "keepalives": 1,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


@lru_cache(maxsize=32)
def _set(settings: tuple[tuple[str, str], ...], *, is_local: bool) -> str:
    """Return the calls that make `settings`, for a transaction if `is_local`.

    There are few that differ, and composing them anew would be a good part of opening a session.
    """
    call = sql.SQL("pg_catalog.set_config({}, {}, {})")
    calls = [call.format(name, value, is_local) for name, value in settings]
    return sql.SQL(", ").join(calls).as_string(None)


class OutOfTime(psycopg.OperationalError):
    """What was asked for took longer than it may: a statement, or what came before a commit."""


class NoAnswer(OutOfTime):
    """Nothing was heard of the server, maybe for the network's sake: no statement is to blame."""


class NoRoom(DatabaseUnavailable):
    """The server has as many sessions as it may have; one may end at any moment."""


class Cursor(psycopg.Cursor[Any]):
    """Executes each statement with the pinned settings, behind a pooler too."""

    def execute(self, query: Any, params: Params | None = None, **options: Any) -> Cursor:
        """Execute; behind a pooler in a transaction, for which the settings can be made.

        Raises OutOfTime for a statement that took longer than its connection's patience.
        """
        connection = self.connection
        if not isinstance(connection, Connection):
            return super().execute(query, params, **options)
        with connection.timed():
            if not connection.is_pooled_and_idle:
                return super().execute(query, params, **options)
            with connection.transaction():
                return super().execute(query, params, **options)


class RawCursor(Cursor, psycopg.RawCursor[Any]):
    """The same for statements that have their parameters as PostgreSQL does: $1, $2."""


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A session that finds nothing of a user's by a bare name, and does not wait for ever.

    `pooled` says that each transaction may run in another session of the server, which pgbouncer
    lends to others in between: settings are made for each transaction, otherwise once.

    `patience_seconds` is how long a statement may take, at most half of it for a lock; None for as
    long as it likes. The server ends it then. Where nothing is heard of the server, we ask it to,
    and close the session. TCP alone would wait: for a proxy that still acknowledges, or for a
    minute and more on macOS, which has no tcp_user_timeout.
    """

    pooled = False
    patience_seconds: float | None = None
    answered_at = -math.inf

    @property
    def is_pooled_and_idle(self) -> bool:
        """Whether the next statement would run with the settings of whoever was there last."""
        return self.pooled and self.info.transaction_status == TransactionStatus.IDLE

    @property
    def place(self) -> str:
        """What messages call its database: the private one, if none was named."""
        return place_of(self.info.dsn)

    @property
    def place_if_private(self) -> str:
        """The same, to be put behind what is in it; nothing where a person knows which it is."""
        return place_if_private(self.info.dsn)

    @property
    def silent_seconds(self) -> float:
        """For how long the server has been told nothing, as this process counts."""
        return time.monotonic() - self.answered_at

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Raise OutOfTime for a statement that the server ended since it took too long."""
        started = time.monotonic()
        try:
            yield
        except psycopg.errors.QueryCanceled as error:
            taken_seconds = time.monotonic() - started
            if self.patience_seconds is None or taken_seconds < 0.9 * self.patience_seconds:
                raise
            raise OutOfTime(
                f"a statement took longer than {self.patience_seconds:g} seconds"
            ) from error

    @contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> Iterator[psycopg.Transaction]:
        """Open a transaction, or a savepoint within one."""
        must_pin = self.is_pooled_and_idle
        try:
            with super().transaction(savepoint_name, force_rollback) as transaction:
                if must_pin:
                    self.execute(READ_COMMITTED)
                    self.execute(self._pin_transaction())
                yield transaction
        except psycopg.Rollback:
            # psycopg keeps to itself what went wrong with a rollback, and lets its sign out.
            if not self.closed:
                raise
            raise psycopg.OperationalError("the connection was lost in a rollback") from None

    def row(self, query: Statement, values: Params | None = None) -> tuple[Any, ...]:
        """Return the one row of a query; raises LookupError if there is none."""
        row = self.execute(query, values).fetchone()
        if row is None:
            raise LookupError("a query that always has a row returned none")
        return row

    def value(self, query: Statement, values: Params | None = None) -> Any:
        """Return the first value of a query's first row, None if there is no row."""
        row = self.execute(query, values).fetchone()
        return None if row is None else row[0]

    def has_relation(self, table: Table) -> bool:
        """Return whether the name of `table` is that of a table, view, index or sequence."""
        return bool(self.value("select to_regclass(%s) is not null", (table.quoted,)))

    def refuse_pooler(self, what: str) -> None:
        """Raise UsageError if `what`, which lives in its session, would lose it behind a pooler."""
        if self.pooled:
            raise UsageError(
                f"{what} needs a session of its own, and a pooler such as pgbouncer lends it to"
                " others in between; connect to PostgreSQL itself"
            )

    def pin_settings(self) -> None:
        """Find out whether this is a session of our own, and make its settings if so."""
        try:
            self.pooled = self.execute(self._pin_session(), (self.info.backend_pid,)).rowcount == 0
        except psycopg.Error:
            self.close()
            raise

    def _pinned(self) -> dict[str, str]:
        """Return what this session has set, whatever its role, database or server has.

        A statement_timeout that the connection string asks for stays where we have none of our own.
        """
        patience = self.patience_seconds
        bounds = {"statement_timeout": patience, "lock_timeout": patience and patience / 2}
        timeouts = {
            name: str(int((bounds.get(name) or 0) * 1000))
            for name, since in TIMEOUTS.items()
            if self.info.server_version >= since
            and (bounds.get(name) or name not in self.info.options)
        }
        return {**SESSION_SETTINGS, **timeouts}

    def _pin_session(self) -> str:
        settings = _set(tuple(self._pinned().items()), is_local=False)
        return PIN_SESSION.format(settings=settings)

    def _pin_transaction(self) -> str:
        return f"select {_set(tuple(self._pinned().items()), is_local=True)}"

    def wait(
        self, gen: Generator[Any, Any, Answer], *arguments: Any, **named_arguments: Any
    ) -> Answer:
        """Run a step of a statement; closes the session and raises OutOfTime if too slow."""
        if self.patience_seconds is not None:
            gen = self._limited(gen, time.monotonic() + self.patience_seconds + GRACE_SECONDS)
        answer = super().wait(gen, *arguments, **named_arguments)
        self.answered_at = time.monotonic()
        return answer

    def _limited(
        self, steps: Generator[Any, Any, Answer], deadline: float
    ) -> Generator[Any, Any, Answer]:
        """Pass on what psycopg waits for; it looks in ten times a second, if only with nothing."""
        try:
            wanted = next(steps)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > deadline:
                    self._give_up()
                    raise NoAnswer(
                        f"no answer from the server within {self.patience_seconds:g} seconds"
                    )
                wanted = steps.send(ready)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def _give_up(self) -> None:
        """Close the session; what it runs in the server would run on, and is cancelled first."""
        self.request_cancel()
        self.pgconn.finish()

    def request_cancel(self) -> None:
        """Ask the server to end what this session runs, for CANCEL_SECONDS at most.

        In a thread: before version 17, libpq waits for as long as TCP does.
        """
        request = threading.Thread(target=self._cancel, daemon=True)
        request.start()
        request.join(CANCEL_SECONDS)

    def _cancel(self) -> None:
        with suppress(psycopg.Error):
            self.cancel_safe(timeout=CANCEL_SECONDS)


def connect(
    conninfo: str,
    *,
    application_name: str = applications.COMMAND,
    patience_seconds: float | None = None,
) -> Connection:
    """Open an autocommit session that works through pgbouncer in transaction mode.

    Each of its statements may take `patience_seconds`; then it raises OutOfTime.
    Raises DatabaseUnavailable, or NoRoom, with one line that holds no password.
    """
    try:
        connection = Connection.connect(
            conninfo,
            autocommit=True,
            prepare_threshold=None,
            application_name=application_name,
            client_encoding="UTF8",
            connect_timeout=10,
            cursor_factory=Cursor,
            **KEEPALIVE,
        )
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        connection.patience_seconds = patience_seconds
        connection.pin_settings()
        return connection
    except psycopg.OperationalError as error:
        says = f"cannot connect to {describe_dsn(conninfo)}: {first_line(error)}"
        if is_no_room(error):
            raise NoRoom(says) from None
        way_out = f"; {how_to_reach(conninfo)}" if is_nothing_there(error) else ""
        raise DatabaseUnavailable(says + way_out) from None
