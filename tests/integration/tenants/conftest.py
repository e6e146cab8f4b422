"""A role that owns tables and is not trusted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg.conninfo import make_conninfo

from pgqueue_embed.db.session import Connection, connect
from tests.support.tenants import NOTE


@pytest.fixture
def tenant(conninfo: str, connection: Connection) -> Iterator[Connection]:
    """A role that owns schema shop and its tables, and nothing else."""
    connection.execute("create role tenant login password 'of-a-role'")
    connection.execute("create schema shop authorization tenant")
    connection.execute("grant usage on schema pgembed to tenant")
    with connect(make_conninfo(conninfo, user="tenant", password="of-a-role")) as session:
        session.execute(NOTE)
        yield session
    connection.execute("drop owned by tenant cascade; drop role tenant")
