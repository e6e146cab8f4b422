"""Settings of a database under which values are spelled otherwise than pgembed spells them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg import sql

from pgqueue_embed.db.session import Connection, connect

ODD = {"timezone": "Asia/Kathmandu", "datestyle": "German, DMY"}


@contextmanager
def session_beside_odd_settings(connection: Connection, conninfo: str) -> Iterator[Connection]:
    """Make the odd settings those of the database and of `connection`; gives a new session."""
    database = sql.Identifier(connection.info.dbname)
    for name, value in ODD.items():
        change = sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value))
        connection.execute(sql.SQL("set {}").format(change))
        connection.execute(sql.SQL("alter database {} set {}").format(database, change))
    with connect(conninfo) as own:
        yield own
