"""A source that logical replication fills: what its apply worker writes is captured."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg.conninfo import make_conninfo

from pgqueue_embed.db.migrate import migrate
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.queue.capture import install
from tests.servers import temporary_server
from tests.support.capturing import SWEEP, captured
from tests.support.conditions import wait_until
from tests.support.pipelines import make_pipeline
from tests.support.rows import one_value

TABLE = "create table public.reports (id int primary key, body text, other int)"


@pytest.fixture(scope="module")
def databases() -> Iterator[tuple[str, str]]:
    """Publisher and subscriber, two databases of one server."""
    settings = {"wal_level": "logical", "max_wal_senders": "4", "max_replication_slots": "4"}
    with temporary_server(extra_settings=settings) as server:
        with connect(server.conninfo()) as administrator:
            administrator.execute("create database publisher")
            administrator.execute("create database subscriber")
        names = ("publisher", "subscriber")
        publisher, subscriber = (make_conninfo(server.conninfo(), dbname=name) for name in names)
        migrate(subscriber)
        yield publisher, subscriber


def subscribe(publisher: Connection, subscriber: Connection, conninfo: str) -> None:
    """Replicate what is published; a subscription in one server cannot make its own slot."""
    publisher.execute("select pg_create_logical_replication_slot('slot', 'pgoutput')")
    subscriber.execute(
        f"create subscription changes connection '{conninfo}' publication changes"
        " with (create_slot = false, slot_name = 'slot')"
    )


def test_every_replicated_change_is_captured(databases: tuple[str, str]) -> None:
    with connect(databases[0]) as publisher, connect(databases[1]) as subscriber:
        for each in (publisher, subscriber):
            each.execute(TABLE)
        publisher.execute("insert into public.reports values (1, 'one'), (2, 'two')")
        publisher.execute("create publication changes for table public.reports")
        install(subscriber, make_pipeline(subscriber))
        try:
            subscribe(publisher, subscriber, databases[0])
            assert wait_for_keys(subscriber, 2) == ["1", "2"], "the first copy"
            publisher.execute("insert into public.reports values (3, 'three')")
            assert wait_for_keys(subscriber, 1) == ["3"]
            publisher.execute("update public.reports set other = 1")
            publisher.execute("update public.reports set body = 'changed' where id = 1")
            publisher.execute("update public.reports set id = 20 where id = 2")
            assert wait_for_keys(subscriber, 3) == ["1", "2", "20"]
            publisher.execute("delete from public.reports where id = 3")
            assert wait_for_keys(subscriber, 1) == ["3"]
            publisher.execute("truncate public.reports")
            assert wait_for_keys(subscriber, 1) == [SWEEP]
        finally:
            subscriber.execute("drop subscription if exists changes")


def wait_for_keys(subscriber: Connection, count: int) -> list[str]:
    """Return what is queued once it is `count` keys or sweeps, and empty the queue."""
    query = "select coalesce(sum(greatest(records, 1)), 0) >= %s from pgembed.work"
    wait_until(lambda: one_value(subscriber, query, (count,)), "it is replicated")
    return captured(subscriber)
