"""A database for a measurement, which is gone when that ends, however it ends.

A database, not a schema: in one that is there, other workers would claim what is to be measured,
and its pipelines and history would be those of others.
"""

from __future__ import annotations

import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgqueue_embed.db.migrate import migrate
from pgqueue_embed.db.session import BOOKKEEPING_SECONDS, Connection, connect
from pgqueue_embed.errors import PgembedError, SetupError
from pgqueue_embed.worker.signals import handling

PREFIX = "pgembed_bench_"
# What an earlier one has left, that was killed: no measurement takes so long.
LEFT_SECONDS = 6 * 3600

OURS = r"select datname from pg_database where datname ~ '^pgembed_bench_\d+_[0-9a-f]+$'"


@contextmanager
def throw_away_database(conninfo: str) -> Iterator[str]:
    """Make a database with schema pgembed beside the one of `conninfo`; yields how to reach it.

    Raises SetupError where the role may not make one.
    """
    name = f"{PREFIX}{int(time.time())}_{secrets.token_hex(4)}"
    try:
        _make(conninfo, name)
        own = make_conninfo(conninfo, dbname=name)
        _migrate(own)
        yield own
    finally:
        with _undisturbed():
            _drop(conninfo, name)


def _make(conninfo: str, name: str) -> None:
    with connect(conninfo, patience_seconds=BOOKKEEPING_SECONDS) as connection:
        connection.refuse_pooler("making a database")
        _sweep(connection)
        try:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        except psycopg.errors.InsufficientPrivilege:
            raise SetupError(
                "this role may not create a database, in one of which workers are measured; name"
                " one that may by --dsn, or the private server (pgembed db url)"
            ) from None


def _migrate(own: str) -> None:
    try:
        migrate(own)
    except PgembedError as error:
        raise SetupError(
            f"{error}; workers were to be measured in a new database of this server: name another"
            " one by --dsn, or the private one (pgembed db url)"
        ) from None


def _sweep(connection: Connection) -> None:
    """Drop what an earlier measurement has left that was killed, unless it has sessions."""
    for (name,) in connection.execute(OURS).fetchall():
        made_at = int(name.removeprefix(PREFIX).partition("_")[0])
        if time.time() - made_at > LEFT_SECONDS:
            with suppress(psycopg.Error):
                connection.execute(sql.SQL("drop database {}").format(sql.Identifier(name)))


def _drop(conninfo: str, name: str) -> None:
    with connect(conninfo, patience_seconds=BOOKKEEPING_SECONDS) as connection:
        drop = sql.SQL("drop database if exists {} with (force)")
        connection.execute(drop.format(sql.Identifier(name)))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no second Ctrl-C stop what is done: it is short, and leaves nothing behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    with handling(dict.fromkeys(numbers, signal.SIG_IGN)):
        yield
