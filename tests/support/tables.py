"""Tables of a database."""

from __future__ import annotations

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from tests.support.rows import one_value

TARGET = Table(schema="public", name="reports_chunks")


def exists(connection: Connection, table: Table = TARGET) -> bool:
    return one_value(connection, "select to_regclass(%s) is not null", (str(table),))
