"""Talking to the server over SQL."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgqueue_embed.errors import LocalServerError
from pgqueue_embed.local_server.ports import HOST

if TYPE_CHECKING:
    import psycopg

# Not pgembed: a role finds the schema of its own name before public, and its tables would go there.
USER = "app"
DATABASE = "pgembed"
MAINTENANCE_DATABASE = "postgres"
CONNECT_SECONDS = 5


def make_conninfo(port: int, password: str, database: str = DATABASE) -> str:
    """Return libpq's connection string, with the password.

    TLS and Kerberos are off by name, since PGSSLMODE and the like would ask for them.
    """
    from psycopg.conninfo import make_conninfo as join

    return join(
        host=HOST,
        port=port,
        user=USER,
        password=password,
        dbname=database,
        sslmode="disable",
        gssencmode="disable",
    )


class ServerDoesNotAnswer(Exception):
    """The server of this data folder does not answer; the text says why."""


def answering_version(conninfo: str, data_folder: Path) -> str:
    """Return the version of the server that answers; raise ServerDoesNotAnswer otherwise.

    Another server is no answer, not even one that was started on a copy of the folder. A refused
    password is a LocalServerError: waiting does not mend it.
    """
    import psycopg

    query = (
        "select pg_catalog.current_setting('data_directory'),"
        " pg_catalog.current_setting('server_version')"
    )
    try:
        with _connect(conninfo) as connection:
            [(folder, version)] = connection.execute(query).fetchall()
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        if "password authentication failed" in reason:
            raise _password_error(data_folder) from None
        raise ServerDoesNotAnswer(reason) from None
    if Path(folder) != data_folder:
        raise ServerDoesNotAnswer(f"its port belongs to the server of {folder}")
    return str(version).split()[0]


def create_database(conninfo: str) -> None:
    """Create database ``pgembed`` unless it is there; only under the lock."""
    import psycopg

    try:
        with _connect(conninfo) as connection:
            found = "select from pg_catalog.pg_database where datname operator(pg_catalog.=) %s"
            if connection.execute(found, (DATABASE,)).fetchone() is None:
                connection.execute(f'create database "{DATABASE}"')
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        raise LocalServerError(
            f"cannot create database {DATABASE} in the private server: {reason}; "
            "mend that, or set PGEMBED_HOME to a new folder"
        ) from error


def _connect(conninfo: str) -> psycopg.Connection[Any]:
    import psycopg

    return psycopg.connect(conninfo, autocommit=True, connect_timeout=CONNECT_SECONDS)


def _password_error(data_folder: Path) -> LocalServerError:
    return LocalServerError(
        f"the server on the port of {data_folder} refuses the password kept there; stop that "
        "server, put the password back with ALTER ROLE, or set PGEMBED_HOME to another folder"
    )
