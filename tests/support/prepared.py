"""The beginning of a file's tests, made once in a database that each of them has a copy of."""

from __future__ import annotations

from collections.abc import Callable

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection, connect
from tests.support.working import open_session

Fill = Callable[[str], None]


def filled_by(make: Callable[[Connection, Session], object]) -> Fill:
    """Return what fills a migrated database by `make`, from a user's session and a worker's.

    It is for a file's PREPARED, by the name of the fixture whose database it makes.
    """

    def fill(conninfo: str) -> None:
        with connect(conninfo) as connection, open_session(conninfo) as session:
            connection.execute("reset search_path")
            make(connection, session)

    return fill
