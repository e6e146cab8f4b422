"""Sessions for searches, of a server that has no room for more."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgqueue_embed.db import session
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import DatabaseUnavailable
from pgqueue_embed.vector_search import sessions as module
from pgqueue_embed.vector_search.sessions import Sessions
from tests.support.conditions import wait_until


@pytest.fixture
def only_one(connection: Connection, conninfo: str) -> Iterator[str]:
    """The connection string of a role that may have one session."""
    connection.execute(
        "create role only_one login password 'secret' connection limit 1;"
        "grant usage on schema pgembed to only_one;"
        "grant select on all tables in schema pgembed to only_one"
    )
    yield make_conninfo(conninfo, user="only_one", password="secret")
    connection.execute("drop owned by only_one; drop role only_one")


def opened(conninfo: str, patience_seconds: float) -> Sessions:
    return Sessions(conninfo, application_name="waits", patience_seconds=patience_seconds)


def test_search_waits_for_room_for_another_session(
    only_one: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []
    connect = session.connect

    def counted(conninfo: str, **options: object) -> Connection:
        tries.append(conninfo)
        return connect(conninfo, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "connect", counted)
    with psycopg.connect(only_one) as there, ThreadPoolExecutor(2) as others:
        waits = opened(only_one, patience_seconds=60)
        both = [others.submit(waits.run, lambda own: own.value("select 1")) for _ in range(2)]
        wait_until(lambda: len(tries) > 3, "both have tried again")
        assert not any(each.done() for each in both)
        there.close()
        assert [each.result(30) for each in both] == [1, 1]
        waits.close()


def test_and_no_longer_than_it_may(only_one: str) -> None:
    with psycopg.connect(only_one):
        for patience_seconds in (0.0, 0.3):
            impatient = opened(only_one, patience_seconds)
            with pytest.raises(DatabaseUnavailable, match="too many connections"):
                impatient.run(lambda own: own.value("select 1"))
