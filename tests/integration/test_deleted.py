"""Records that the source loses: enqueue finds them in the ledger, workers forget them."""

from __future__ import annotations

import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection
from pgqueue_embed.queue.capture import install
from pgqueue_embed.queue.dead_letters import retry
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.corpus import delete_records, make_source, texts
from tests.support.fakes import POISON
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.working import drain, embed, open_session


def test_records_that_left_the_source_are_queued_once_and_forgotten(
    conninfo: str, connection: Connection
) -> None:
    source = make_source(connection, texts(600))
    pipeline = make_pipeline(connection, source)
    with open_session(conninfo) as session:
        enqueue(connection, pipeline, Selection())
        drain(session, pipeline)
        delete_records(connection, source, list(range(1, 301)))
        assert enqueue(connection, pipeline, Selection(), slice_records=100) == 300
        assert enqueue(connection, pipeline, Selection(), slice_records=100) == 0
        query = "select total, done, pending from pgembed.progress"
        assert connection.execute(query).fetchone() == (600, 600, 300)
        drain(session, pipeline)
    assert_converged(connection, "reports")


def test_limited_enqueue_leaves_the_ledger_alone(conninfo: str, connection: Connection) -> None:
    source = make_source(connection, texts(5))
    pipeline = make_pipeline(connection, source)
    with open_session(conninfo) as session:
        enqueue(connection, pipeline, Selection())
        drain(session, pipeline)
    delete_records(connection, source, [1, 2])
    assert enqueue(connection, pipeline, Selection(limit=10)) == 0
    assert enqueue(connection, pipeline, Selection(where="id < 3")) == 0
    assert enqueue(connection, pipeline, Selection()) == 2


EMPTY_KEY = """
create table reports (id text primary key, body text);
insert into reports values ('', 'The pump stopped.'), ('b', 'The valve was open.')
"""


@pytest.mark.parametrize("statement", ["delete from reports where id = ''", "truncate reports"])
def test_record_whose_key_is_the_empty_text_is_forgotten_like_others(
    connection: Connection, session: Session, statement: str
) -> None:
    connection.execute(EMPTY_KEY)
    pipeline = make_pipeline(connection)
    embed(connection, session, pipeline)
    if statement.startswith("truncate"):
        install(connection, pipeline)
    connection.execute(statement)
    if statement.startswith("delete"):
        assert enqueue(connection, pipeline, Selection(), slice_records=1) == 1
    drain(session, pipeline)
    assert_converged(connection, "reports")


def test_dead_letter_whose_key_is_the_empty_text_is_retried_with_the_others(
    connection: Connection, session: Session
) -> None:
    connection.execute(EMPTY_KEY)
    connection.execute("update reports set body = %s", (POISON,))
    pipeline = make_pipeline(connection)
    embed(connection, session, pipeline)
    assert retry(connection, pipeline) == 2
