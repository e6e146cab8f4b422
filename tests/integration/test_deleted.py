"""Records that the source loses: enqueue finds them in the ledger, workers forget them."""

from __future__ import annotations

from pgqueue_embed.db.session import Connection
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.corpus import delete_records, make_source, texts
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.working import drain, open_session


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
