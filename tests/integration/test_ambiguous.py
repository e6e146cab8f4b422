"""Keys that have several rows: refused where they can be seen, dead letters if they come later."""

from __future__ import annotations

import pytest

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.capture import install
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.fakes import FakeDevice
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.working import drain, open_session, work_once

JOINED = Table(schema="public", name="joined")
STATES = "select key, state from pgembed.records order by key"


@pytest.fixture
def joined(conninfo: str, connection: Connection) -> Pipeline:
    """A pipeline over a view that joins reports with their notes, embedded."""
    connection.execute(
        """
        create table reports (id bigint primary key, body text);
        create table notes (report_id bigint, note text);
        insert into reports select n, 'Report ' || n from generate_series(1, 3) as n;
        insert into notes select n, 'Note ' || n from generate_series(1, 3) as n;
        create view joined as
            select id, body || ' ' || note as body from reports join notes on report_id = id
        """
    )
    made = make_pipeline(connection, JOINED)
    work(conninfo, connection, made)
    return made


def work(conninfo: str, connection: Connection, pipeline: Pipeline) -> int:
    """Queue and embed; returns how many records were queued."""
    queued = enqueue(connection, pipeline, Selection())
    with open_session(conninfo) as session:
        drain(session, pipeline)
    return queued


@pytest.mark.on_both_servers
def test_only_what_is_ambiguous_is_given_up_on_until_it_is_not(
    conninfo: str,
    connection: Connection,
    joined: Pipeline,
    caplog: pytest.LogCaptureFixture,
) -> None:
    connection.execute(
        """
        insert into reports values (4, 'New'), (5, 'New');
        insert into notes values (2, 'Another'), (4, 'One'), (4, 'Two'), (5, 'One')
        """
    )
    work(conninfo, connection, joined)
    assert "source=public.joined such_as=2, 4" in caplog.text
    assert dict(connection.execute(STATES).fetchall()) == {
        "1": "embedded",
        "2": "dead",
        "3": "embedded",
        "4": "dead",
        "5": "embedded",
    }
    errors = "select distinct last_error from pgembed.dead_letters"
    assert connection.execute(errors).fetchall() == [
        ("public.joined has 2 rows with this key; make it unique",)
    ]
    assert work(conninfo, connection, joined) == 0, "nothing has changed"
    connection.execute("delete from notes where note in ('Another', 'Two')")
    assert work(conninfo, connection, joined) == 2
    assert_converged(connection, "reports")


def test_key_that_gets_a_second_row_while_it_is_embedded_is_not_embedded(
    conninfo: str, connection: Connection, joined: Pipeline
) -> None:
    connection.execute("update reports set body = 'Changed' where id = 1")
    enqueue(connection, joined, Selection())
    second = "insert into notes values (1, 'Another')"
    device = FakeDevice(dimensions=joined.dimensions, during=lambda: connection.execute(second))
    with open_session(conninfo) as session:
        work_once(session, joined, device)
        drain(session, joined)
    assert ("1", "dead") in connection.execute(STATES).fetchall()


def inherit(connection: Connection) -> None:
    connection.execute(
        """
        create table reports (id bigint primary key, body text);
        create table heirs () inherits (reports);
        insert into reports values (1, 'One of the parent');
        insert into heirs values (2, 'Two')
        """
    )


def test_create_refuses_a_key_that_an_heir_has_too(connection: Connection) -> None:
    inherit(connection)
    connection.execute("insert into heirs values (1, 'One of an heir')")
    with pytest.raises(UsageError, match="the same id, such as 1, those of tables"):
        make_pipeline(connection)


def test_key_that_an_heir_gets_later_is_found(conninfo: str, connection: Connection) -> None:
    inherit(connection)
    pipeline = make_pipeline(connection)
    work(conninfo, connection, pipeline)
    assert_converged(connection, "reports")
    install(connection, pipeline)
    connection.execute("insert into heirs values (1, 'One of an heir')")
    with open_session(conninfo) as session:
        drain(session, pipeline)
    assert ("1", "dead") in connection.execute(STATES).fetchall()
    assert work(conninfo, connection, pipeline) == 0
    connection.execute("delete from only reports")
    with open_session(conninfo) as session:
        drain(session, pipeline)
    assert_converged(connection, "reports")


def test_create_refuses_a_view_with_a_key_twice(connection: Connection) -> None:
    connection.execute(
        "create view reports as select n / 2 as id, 'text' as body from generate_series(2, 9) as n"
    )
    with pytest.raises(UsageError, match="several rows with the same id, such as"):
        make_pipeline(connection)
