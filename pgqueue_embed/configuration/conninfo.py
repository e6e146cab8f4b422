"""Chooses the database: by options, the environment, a file, or the private server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg.conninfo import make_conninfo

from pgqueue_embed.configuration.database import declared_database
from pgqueue_embed.db.dsn import normalise
from pgqueue_embed.errors import UsageError
from pgqueue_embed.untrusted.bounded_file import UnreadableFile, read_bounded

# Any of these in the environment means that the user has named a database the libpq way.
LIBPQ_VARIABLES = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE")

# A file with a connection string, as service managers and containers hand secrets over.
DSN_FILE_VARIABLE = "PGEMBED_DSN_FILE"
MOST_DSN_BYTES = 64 * 1024

DSN_VARIABLES = ("PGEMBED_DSN", DSN_FILE_VARIABLE, "DATABASE_URL")

# Who one is does not say where: a file may still name the database.
WHO = {"user", "password"}
PLACE_VARIABLES = (
    *DSN_VARIABLES,
    DSN_FILE_VARIABLE,
    *(name for name in LIBPQ_VARIABLES if name != "PGUSER"),
)


@dataclass(frozen=True, kw_only=True)
class DatabaseOptions:
    """The connection options of the command line; None where one was not given."""

    dsn: str | None = None
    host: str | None = None
    port: int | None = None
    name: str | None = None
    user: str | None = None
    password: str | None = None

    def parts(self) -> dict[str, str | int]:
        """Return the separately given options under their libpq names."""
        given = {
            "host": self.host,
            "port": self.port,
            "dbname": self.name,
            "user": self.user,
            "password": self.password,
        }
        return {name: value for name, value in given.items() if value is not None}


def resolve_conninfo(
    options: DatabaseOptions,
    environment: Mapping[str, str] = os.environ,
    *,
    file: Path | None = None,
    may_make: bool = True,
) -> str:
    """Return the libpq connection string that options and environment name.

    In this order: ``--dsn``, the separate ``--db-*`` options, ``PGEMBED_DSN``, the file that
    ``PGEMBED_DSN_FILE`` names, ``DATABASE_URL``, the ``PG*`` variables (an empty string: libpq
    reads them itself), the configuration `file`,
    which is read only if nothing before it says where, the private server, which is started if
    need be, and made where it `may_make` one. Raises UsageError for a string that is empty or
    cannot be read, two at once, or none at all, ConfigurationError for what is wrong in the file,
    and LocalServerError if the private server cannot run.
    """
    _refuse_empty(options, environment)
    parts = options.parts()
    if options.dsn and parts:
        raise UsageError("--dsn and --db-* both name a database; give one of them")
    if options.dsn:
        return normalise(options.dsn, "--dsn")
    if not (parts.keys() - WHO) and not any(environment.get(each) for each in PLACE_VARIABLES):
        declared = declared_database(file) if file else {}
        parts = {**_as_whom(declared, environment), **parts}
    if parts:
        return make_conninfo("", **parts)
    for variable in DSN_VARIABLES:
        if value := environment.get(variable):
            return normalise(_of_file(value) if variable == DSN_FILE_VARIABLE else value, variable)
    if any(environment.get(variable) for variable in LIBPQ_VARIABLES):
        return ""
    from pgqueue_embed.local_server import ensure_running

    return ensure_running(may_make=may_make)


def _refuse_empty(options: DatabaseOptions, environment: Mapping[str, str]) -> None:
    """Raise UsageError for an empty string, which a variable that was not set leaves behind."""
    for origin, dsn in (("--dsn", options.dsn), ("PGEMBED_DSN", environment.get("PGEMBED_DSN"))):
        if dsn is not None and not isinstance(dsn, str):
            raise UsageError(f"{origin}: give a text")
        if dsn is not None and not dsn.strip():
            raise UsageError(f"{origin} is empty; name a database, or leave it out")


def _of_file(name: str) -> str:
    """Return the connection string that a file holds; raises UsageError where there is none."""
    try:
        dsn = read_bounded(Path(name), MOST_DSN_BYTES).strip()
    except OSError as error:
        raise UsageError(f"{DSN_FILE_VARIABLE}: {name}: {error.strerror}") from None
    except UnreadableFile as error:
        raise UsageError(f"{DSN_FILE_VARIABLE}: {error}") from None
    if not dsn:
        raise UsageError(f"{DSN_FILE_VARIABLE}: {name} is empty; write the connection string in it")
    return dsn


def _as_whom(declared: Mapping[str, Any], environment: Mapping[str, str]) -> Mapping[str, Any]:
    """Return what a file says of the database, without a user that the environment names."""
    if not environment.get("PGUSER"):
        return declared
    return {name: value for name, value in declared.items() if name != "user"}
