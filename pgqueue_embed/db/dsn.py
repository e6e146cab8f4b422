"""Connection strings: read, and described without their password."""

from __future__ import annotations

import os
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgqueue_embed.errors import UsageError


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


# What the connection string of the private server has in it; a person who copies it leaves it out.
PRIVATE = "pgembed-private"
THE_DATABASE = "the database"
MARKED = "fallback_application_name"


def place_of(conninfo: str) -> str:
    """Return what messages call a database: the private one, if none was named."""
    if conninfo_to_dict(conninfo).get(MARKED) == PRIVATE:
        return "the private PostgreSQL (no database was named: --dsn, PGEMBED_DSN)"
    return THE_DATABASE


def place_if_private(conninfo: str) -> str:
    """Return the same, to go behind what is in it; nothing where a person knows which it is."""
    place = place_of(conninfo)
    return f" in {place}" if place != THE_DATABASE else ""


def how_to_reach(conninfo: str) -> str:
    """Return what a person can do about a server that is not there."""
    if place_of(conninfo) != THE_DATABASE:
        return "start it: pgembed db start"
    return (
        "check that PostgreSQL runs there, and host and port; where no database is named (--dsn,"
        " PGEMBED_DSN), pgembed starts a server of its own"
    )


def describe_dsn(conninfo: str) -> str:
    """Return where `conninfo` leads, without any secret: ``app@db.lan:5432/reports``."""
    values = {**_libpq_defaults(), **conninfo_to_dict(conninfo)}
    if values.get("service"):
        return f"service {values['service']}"
    host = values.get("host") or "the local socket"
    user = f"{values['user']}@" if values.get("user") else ""
    private = "the private PostgreSQL at " if values.get(MARKED) == PRIVATE else ""
    return f"{private}{user}{host}:{values.get('port') or 5432}/{values.get('dbname') or ''}"


def _libpq_defaults() -> dict[str, Any]:
    names = {"host": "PGHOST", "port": "PGPORT", "dbname": "PGDATABASE", "user": "PGUSER"}
    names["service"] = "PGSERVICE"
    return {
        name: os.environ[variable] for name, variable in names.items() if variable in os.environ
    }
