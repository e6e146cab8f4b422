"""Turns errors of the database into PgembedErrors for a program, whatever driver we use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from pgqueue_embed.db.errors import first_line, refused
from pgqueue_embed.db.faults import error_type
from pgqueue_embed.db.migrate import check_schema
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import (
    DatabaseUnavailable,
    MissingRight,
    PgembedError,
    SetupError,
    UsageError,
    as_arguments,
)
from pgqueue_embed.vector_search.rights import naming_missing_rights


@contextmanager
def explained() -> Iterator[None]:
    """Raise UsageError for what cannot be sent to a database, else for what it refuses SetupError.

    MissingRight where another role might do it, DatabaseUnavailable where it is away, and may come
    back. Errors that are PgembedErrors already come to name arguments, and not options.
    """
    try:
        yield
    except PgembedError as error:
        error.args = (as_arguments(str(error)),)
        raise
    except UnicodeError as error:
        raise UsageError(f"an argument is no text that UTF-8 has: {error.reason}") from error  # type: ignore[attr-defined]
    except psycopg.Error as error:
        if error.sqlstate is None and isinstance(error, psycopg.DataError):
            raise UsageError(f"an argument cannot be sent: {first_line(error)}") from error
        # What has no code does not come from PostgreSQL: a pool has no connection left, say.
        raise _kind(error)(refused(error) if error.sqlstate else first_line(error)) from error


def _kind(error: psycopg.Error) -> type[PgembedError]:
    kind = error_type(error)
    return kind if kind in (MissingRight, DatabaseUnavailable) else SetupError


@contextmanager
def opened(conninfo: str) -> Iterator[Connection]:
    """Open a session in a database that has this program's schema; raises PgembedError alone."""
    with explained(), connect(conninfo) as connection:
        with naming_missing_rights(connection):
            check_schema(connection)
        yield connection
