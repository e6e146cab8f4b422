"""Sessions of PostgreSQL: how they are opened, pinned and limited."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg
from psycopg import sql
from psycopg.abc import Params
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus

from pgqueue_embed.errors import DatabaseUnavailable, UsageError
from pgqueue_embed.foreign_text import MOST_CHARACTERS, printable

# SQLSTATE of a database that is away for a while: no connection, no room (or no free connection),
# shutting down, a standby since a failover, a session that a timeout has ended.
AWAY = ("08", "53", "57P", "25006", "25P03", "25P04")

Answer = TypeVar("Answer")

# What it has to say unasked is that a lost connection could not be rolled back: log.configure
# takes it in, and without a log nobody wants to know.
logging.getLogger("psycopg").addHandler(logging.NullHandler())

# A function or operator that somebody created in a schema on our path could fit our arguments
# better than PostgreSQL's own, and would run with our rights. pg_temp is named, since it would
# come first otherwise. Rows that a policy hides would pass for deleted ones: with row_security off,
# PostgreSQL raises an error instead. The isolation is for a single statement, without a BEGIN.
SETTINGS = {
    "search_path": "pg_catalog, pg_temp",
    "row_security": "off",
    "default_transaction_isolation": "read committed",
}

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


class OutOfTime(psycopg.OperationalError):
    """What was asked for took longer than it may: a statement, or what came before a commit."""


class NoAnswer(OutOfTime):
    """Nothing was heard of the server, maybe for the network's sake: no statement is to blame."""


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
        with super().transaction(savepoint_name, force_rollback) as transaction:
            if must_pin:
                self.execute(self._pin_transaction())
            yield transaction

    def refuse_pooler(self, what: str) -> None:
        """Raise UsageError if `what`, which lives in its session, would lose it to somebody."""
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
        return {**SETTINGS, **timeouts}

    def _pin_session(self) -> sql.Composed:
        settings = [
            sql.SQL("pg_catalog.set_config({}, {}, false)").format(name, value)
            for name, value in self._pinned().items()
        ]
        return sql.SQL(PIN_SESSION).format(settings=sql.SQL(", ").join(settings))

    def _pin_transaction(self) -> sql.Composed:
        settings = [
            sql.SQL("pg_catalog.set_config({}, {}, true)").format(name, value)
            for name, value in self._pinned().items()
        ]
        return sql.SQL("select {}").format(sql.SQL(", ").join(settings))

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


def normalise(dsn: str, origin: str) -> str:
    """Return `dsn` as a libpq connection string; drops SQLAlchemy's driver suffix.

    Raises UsageError without repeating the text, which may hold a password.
    """
    scheme, separator, rest = dsn.partition("://")
    if separator and scheme.partition("+")[0] in {"postgres", "postgresql"}:
        dsn = f"postgresql://{rest}"
    try:
        values = conninfo_to_dict(dsn)
        if separator and any("@" in str(values.get(name)) for name in ("host", "port", "dbname")):
            # libpq takes the rest of such a password for a host or database, and shows it.
            raise UsageError(
                f"the password in the URL of {origin} holds an unescaped @ or /;"
                " write %40 for @ and %2F for /"
            )
        return make_conninfo("", **values)
    except psycopg.Error:
        raise UsageError(
            f"the connection string of {origin} cannot be read (not shown, it may hold a password);"
            " expected postgresql://user@host:5432/database or host=… dbname=…"
        ) from None


def connect(
    conninfo: str, *, application_name: str = "pgembed", patience_seconds: float | None = None
) -> Connection:
    """Open an autocommit session that works through pgbouncer in transaction mode.

    Each of its statements may take `patience_seconds`; then it raises OutOfTime.
    Raises DatabaseUnavailable with one line that holds no password.
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
        raise DatabaseUnavailable(
            f"cannot connect to {describe(conninfo)}: {first_line(error)}"
        ) from None


def describe(conninfo: str) -> str:
    """Return where `conninfo` leads, without any secret: ``app@db.lan:5432/reports``."""
    values = {**_libpq_defaults(), **conninfo_to_dict(conninfo)}
    if values.get("service"):
        return f"service {values['service']}"
    host = values.get("host") or "the local socket"
    user = f"{values['user']}@" if values.get("user") else ""
    return f"{user}{host}:{values.get('port') or 5432}/{values.get('dbname') or ''}"


def _libpq_defaults() -> dict[str, Any]:
    names = {"host": "PGHOST", "port": "PGPORT", "dbname": "PGDATABASE", "user": "PGUSER"}
    names["service"] = "PGSERVICE"
    return {
        name: os.environ[variable] for name, variable in names.items() if variable in os.environ
    }


def is_away(error: BaseException) -> bool:
    """Return whether the database is away for a while, and no statement is to blame.

    The allowed classes are few: whatever else a server that answers says is about the statement.
    """
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        return error.sqlstate.startswith(AWAY)
    return isinstance(error, (DatabaseUnavailable, psycopg.OperationalError))


def first_line(error: BaseException) -> str:
    """Return the part of a database error that a person needs, on one printable line.

    What the server repeats of a value is cut to MOST_CHARACTERS.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    failures = [line for line in lines if "failed:" in line]
    text = (failures or lines or [type(error).__name__])[-1 if failures else 0]
    text = text.removeprefix("connection failed:").strip().removeprefix("ERROR:").strip()
    text = printable(text, MOST_CHARACTERS)
    return f"{text}; {SEE_ALL_ROWS}" if is_row_security(error) else text


# Whoever would see a part of the rows only must not work at all.
SEE_ALL_ROWS = (
    "to pgembed, rows that are hidden would pass for deleted ones: work as a role that no policy"
    " applies to, such as one that was altered to have BYPASSRLS"
)


def is_row_security(error: BaseException) -> bool:
    """Return whether PostgreSQL refuses to hide rows from us, in whichever language."""
    return isinstance(error, psycopg.Error) and error.diag.source_function == "check_enable_rls"


def dependents(error: psycopg.errors.DependentObjectsStillExist) -> str:
    """Return what depends on that which was to be dropped, on one line."""
    detail = "; ".join((error.diag.message_detail or first_line(error)).splitlines())
    return printable(detail, MOST_CHARACTERS)
