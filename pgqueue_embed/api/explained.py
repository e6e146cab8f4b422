"""Turns errors of the database into PgembedErrors for a program, whatever driver we use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from pgqueue_embed.db.errors import first_line, is_away, refused
from pgqueue_embed.db.migrate import check_schema
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import DatabaseUnavailable, SetupError, UsageError


@contextmanager
def explained() -> Iterator[None]:
    """Raise UsageError for what cannot be sent to a database, else for what it refuses SetupError.

    DatabaseUnavailable where it is away, and may come back.
    """
    try:
        yield
    except UnicodeError as error:
        raise UsageError(f"an argument is no text that UTF-8 has: {error.reason}") from error  # type: ignore[attr-defined]
    except psycopg.Error as error:
        if error.sqlstate is None and isinstance(error, psycopg.DataError):
            raise UsageError(f"an argument cannot be sent: {first_line(error)}") from error
        kind = DatabaseUnavailable if is_away(error) else SetupError
        raise kind(refused(error)) from error


@contextmanager
def opened(conninfo: str) -> Iterator[Connection]:
    """Open a session in a database that has this program's schema; raises PgembedError alone."""
    with explained(), connect(conninfo) as connection:
        check_schema(connection)
        yield connection
