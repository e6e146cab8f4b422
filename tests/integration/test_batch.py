"""The story of a claim, with everything that can go wrong in it."""

from __future__ import annotations

import pytest

from pgqueue_embed.connect import Connection
from pgqueue_embed.enqueue import Selection, enqueue
from tests.support.corpus import make_source, texts
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.working import drain, open_session

pytestmark = pytest.mark.on_both_servers


def test_every_record_is_embedded_with_its_chunks(connection: Connection, conninfo: str) -> None:
    make_source(connection, [*texts(50, chunks=3), None, "", " \n\t "])
    pipeline = make_pipeline(connection)
    assert enqueue(connection, pipeline, Selection()) == 53
    with open_session(conninfo) as session:
        drain(session, pipeline)
    assert_converged(connection, "reports")
