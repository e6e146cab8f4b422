"""Sessions of workers, with the odd default isolation on the older server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.local_server import LocalServer
from tests.support.working import open_session


@pytest.fixture
def isolation(server: LocalServer, connection: Connection) -> str:
    """The default isolation of sessions opened from now on, the odd one on the older server."""
    isolation = "read committed" if server.major_version == 18 else "repeatable read"
    name = connection.info.dbname
    connection.execute(f"alter database {name} set default_transaction_isolation = '{isolation}'")
    return isolation


@pytest.fixture
def session(conninfo: str, isolation: str) -> Iterator[Session]:
    """What a worker loop works with."""
    with open_session(conninfo) as opened:
        told = opened.side.execute("show transaction_isolation").fetchone()
        assert told == ("read committed",), f"though it is {isolation} by default"
        yield opened


@pytest.fixture
def other(conninfo: str, session: Session) -> Iterator[Session]:
    """A second worker."""
    del session
    with open_session(conninfo, worker_id=2) as opened:
        yield opened


@pytest.fixture
def rival(conninfo: str) -> Iterator[Connection]:
    """The connection of a second worker."""
    with connect(conninfo) as session:
        yield session
