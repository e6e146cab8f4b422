"""The oracle notices whatever is not as promised: a test of the tests."""

from __future__ import annotations

import re

import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.corpus import make_source, texts
from tests.support.fakes import POISON
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.prepared import filled_by
from tests.support.working import drain

LEDGER = "update pgembed.records set"
TARGET = "update public.reports_chunks set"
ERROR_NOT_CHECKED = "alter table pgembed.records drop constraint records_dead_has_an_error"
NOT_UNIQUE = (
    "alter table public.reports_chunks drop constraint reports_chunks_fulltext_id_chunk_index_key"
)
ONE_CHUNK = "where fulltext_id = 2 and chunk_index = 1"


def converge(connection: Connection, session: Session) -> None:
    """Do everything there is: embedded, empty and dead records."""
    make_source(connection, [None, *texts(5, chunks=3), POISON])
    pipeline = make_pipeline(connection)
    enqueue(connection, pipeline, Selection())
    drain(session, pipeline)
    assert_converged(connection, "reports")


PREPARED = {"connection": filled_by(converge)}


@pytest.mark.parametrize(
    ("tampering", "breach"),
    [
        ("insert into public.reports values (99, 'new')", "has no ledger state"),
        (f"{LEDGER} state = null, chunks = 0 where key = '2'", "has no ledger state"),
        ("delete from public.reports where id = 2", "the source does not have"),
        ("update public.reports set body = body || ' more' where id = 2", "not that of the curr"),
        (f"{LEDGER} document_hash = '\\x00' where key = '2'", "not that of the current"),
        (f"{LEDGER} state = 'empty', chunks = 0 where key = '2'", "does not fit the text"),
        (f"{LEDGER} state = 'embedded', chunks = 1 where key = '1'", "does not fit the text"),
        (f"{LEDGER} chunks = 99 where key = '2'", "count different chunks"),
        (f"{LEDGER} chunks = 0 where key = '2'", "has no chunks"),
        (f"delete from public.reports_chunks {ONE_CHUNK}", "count different chunks"),
        (f"{TARGET} fulltext_id = 7 {ONE_CHUNK}", "belongs to no embedded record"),
        (f"{TARGET} chunk_index = 99 {ONE_CHUNK}", "are not 0, 1, 2"),
        (f"{NOT_UNIQUE}; {TARGET} chunk_index = 0 {ONE_CHUNK}", "are not 0, 1, 2"),
        (f"{TARGET} start_char = start_char + 1 {ONE_CHUNK}", "is not the slice"),
        (f"{TARGET} text_chunk = 'other' {ONE_CHUNK}", "is not the slice"),
        (f"{TARGET} chunk_id = 'other' {ONE_CHUNK}", "an id that is not its own"),
        (f"{TARGET} tokens = 0 {ONE_CHUNK}", "has no tokens"),
        (f"{TARGET} embedding = '[0,0,0,0,0,0,0,0]' {ONE_CHUNK}", "not of length 1"),
        (f"{TARGET} embedding = '[1,1,0,0,0,0,0,0]' {ONE_CHUNK}", "not of length 1"),
        (f"{LEDGER} attempts = 1 where key = '2'", "charged to a record that succeeded"),
        (
            f"{ERROR_NOT_CHECKED}; {LEDGER} last_error = null where key = '7'",
            "dead letter has no error",
        ),
        (
            "insert into pgembed.work (pipeline_id, keys, records) values (1, array['2'], 1)",
            "work is left",
        ),
        (
            "insert into pgembed.attempts (work_id, worker_id, claim_xid) values (1, 1, '3')",
            "attempts are left",
        ),
        ("update pgembed.batches set embedded = embedded + 1", "says total ="),
        ("update pgembed.batches set dead = 5 where dead > 0", "says dead ="),
    ],
)
def test_oracle_notices(connection: Connection, tampering: str, breach: str) -> None:
    connection.execute(tampering)
    with pytest.raises(AssertionError, match=re.escape(breach)):
        assert_converged(connection, "reports")


def test_oracle_knows_no_pipeline_that_is_absent(connection: Connection) -> None:
    with pytest.raises(AssertionError, match="there is no pipeline absent"):
        assert_converged(connection, "absent")
