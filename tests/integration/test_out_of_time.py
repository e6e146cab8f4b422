"""Claims that run out of time get smaller, and only a record that never ends is charged."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pgqueue_embed.chunking import Chunker
from pgqueue_embed.claim.size import ClaimSize
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import LeaseExpired
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.dead_letters import retry
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.conditions import wait_until
from tests.support.corpus import make_source, texts
from tests.support.fakes import FakeDevice, fake_chunker
from tests.support.light import light_process, light_workers
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.rows import one_value
from tests.support.working import drain, open_session, work_once

# More than are read in time, and soon halved to one.
RECORDS = 16

# Seconds that the source takes to compute the text of a record, by its id.
SLOW_SOURCE = """
create table public.seconds (id bigint primary key, seconds float);
create function public.slow(wanted bigint, text text) returns text language plpgsql volatile as $$
begin
    perform pg_sleep(seconds) from public.seconds where id = wanted;
    return text;
end $$;
create view public.slow_reports as select id, public.slow(id, body) as body from public.reports
"""

READING = """
select count(*)
from pg_stat_activity
where application_name = 'pgembed side' and state = 'active'
"""

DEAD = "select key, last_error from pgembed.dead_letters"


@pytest.fixture
def slow(connection: Connection) -> Pipeline:
    """A pipeline over a view, which is quick until seconds are inserted; everything is queued."""
    make_source(connection, texts(RECORDS))
    connection.execute(SLOW_SOURCE)
    pipeline = make_pipeline(connection, Table(schema="public", name="slow_reports"))
    enqueue(connection, pipeline, Selection())
    return pipeline


def take(connection: Connection, seconds: float, *ids: int) -> None:
    """Let the source take so long for the records `ids`."""
    connection.execute("delete from public.seconds")
    connection.execute(
        "insert into public.seconds select id, %s from unnest(%s::bigint[]) as slow (id)",
        (seconds, list(ids)),
    )


def test_record_that_cannot_be_read_in_time_becomes_a_dead_letter_and_all_others_are_done(
    connection: Connection, conninfo: str, slow: Pipeline, tmp_path: Path
) -> None:
    take(connection, 60, 3)
    with light_process(conninfo, tmp_path, lease_seconds=1) as worker:
        assert worker.wait(120) == 0, worker.log()
    [(key, error)] = connection.execute(DEAD).fetchall()
    assert key == "3"
    assert "not done in time: reading public.slow_reports took longer than 0.8 s" in error
    wait_until(lambda: connection.execute(READING).fetchone() == (0,), "no read runs on")
    take(connection, 0)
    retry(connection, slow)
    with open_session(conninfo) as session:
        drain(session, slow)
    assert_converged(connection, "reports")


def test_source_that_is_slow_for_all_is_read_in_smaller_claims(
    connection: Connection, conninfo: str, slow: Pipeline, tmp_path: Path
) -> None:
    del slow
    # Its text is computed twice or more for each record: some five of them are read in time.
    take(connection, 0.1, *range(1, RECORDS + 1))
    with light_workers(conninfo, tmp_path, lease_seconds=1) as [worker]:
        wait_until(
            lambda: "claim given back" in worker.log(), "a claim runs out of time", seconds=60
        )
        assert worker.wait(120) == "drained"
    assert connection.execute(DEAD).fetchall() == []
    assert_converged(connection, "reports")


def test_worker_never_has_more_than_one_read_in_the_server(
    connection: Connection, conninfo: str, slow: Pipeline, tmp_path: Path
) -> None:
    del slow
    take(connection, 60, *range(1, RECORDS + 1))
    with light_process(conninfo, tmp_path, lease_seconds=1, drain=False) as worker:
        seen = []
        while worker.log().count("claim given back") < 5:
            seen.append(one_value(connection, READING))
            time.sleep(0.05)
        assert max(seen) == 1
        take(connection, 0)


class SleepyChunker:
    """Takes `seconds` for a text with a marker, and tells no progress meanwhile."""

    def __init__(self, seconds: float, marker: str) -> None:
        self._chunker: Chunker = fake_chunker()
        self._seconds, self._marker = seconds, marker

    def chunk(self, documents, contexts=None, *, on_progress=lambda: None):  # type: ignore[no-untyped-def]
        if any(self._marker in document for document in documents):
            time.sleep(self._seconds)
        return self._chunker.chunk(documents, contexts, on_progress=on_progress)


def test_item_is_charged_when_it_runs_out_of_time_twice(
    connection: Connection, conninfo: str
) -> None:
    make_source(connection, ["One.", "Two is SLOW."])
    pipeline = make_pipeline(connection)
    enqueue(connection, pipeline, Selection())
    died = "select reason from pgembed.attempts where died_at is not null"
    late: set[int] = set()
    for expected in [[], ["no progress in 0.5 s (--lease)"]]:
        with open_session(conninfo, lease_seconds=0.5) as session:
            session.late.update(late)
            with pytest.raises(LeaseExpired):
                work_once(session, pipeline, chunker=SleepyChunker(1.5, "SLOW"))
            late = set(session.late)
        reasons = [reason.partition("; ")[2] for (reason,) in connection.execute(died)]
        assert reasons == expected


def test_claim_of_one_record_puts_the_others_of_its_item_back(
    connection: Connection, conninfo: str
) -> None:
    make_source(connection, texts(RECORDS))
    pipeline = make_pipeline(connection)
    enqueue(connection, pipeline, Selection())
    one = ClaimSize(items=1, limit_bytes=1, records=1)
    with open_session(conninfo) as session:
        done = work_once(session, pipeline, FakeDevice(), size=one)
        assert done is not None
        assert done.commit.records == 1
        waiting = one_value(connection, "select sum(records) from pgembed.work")
        assert waiting == RECORDS - 1
        drain(session, pipeline)
    assert_converged(connection, "reports")
