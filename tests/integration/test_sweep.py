"""A TRUNCATE of the source: a sweep through the ledger that every worker can take up."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import psycopg
import pytest

from pgqueue_embed.claim import process
from pgqueue_embed.claim.process import Session
from pgqueue_embed.claim.sweep import sweep_slice
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import PipelineFault
from pgqueue_embed.lifecycle.alter import Changes, alter
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.capture import install
from pgqueue_embed.queue.claims import Claim, claim_items, finish_items, is_drained
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.conditions import terminate, wait_until_blocked
from tests.support.corpus import make_source, texts
from tests.support.fakes import FakeDevice
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline, prepare_with_fake_model
from tests.support.prepared import filled_by
from tests.support.rows import one_value
from tests.support.working import drain, open_session, work_once

RECORDS = 40
SWEEPS = "select sweep_after from pgembed.work where sweep_after is not null order by id"
PENDING = "select total, done, pending from pgembed.progress"


def make_embedded(connection: Connection, session: Session) -> None:
    make_source(connection, texts(RECORDS))
    made = make_pipeline(connection)
    install(connection, made)
    enqueue(connection, made, Selection())
    drain(session, made)


PREPARED = {"pipeline": filled_by(make_embedded)}


@pytest.fixture
def pipeline(connection: Connection) -> Pipeline:
    """A pipeline over ``public.reports`` with capture on, and all its records embedded."""
    return load_pipeline(connection, "reports")


@pytest.fixture
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "SWEPT_RECORDS", 7)


@pytest.mark.on_both_servers
@pytest.mark.usefixtures("_small_slices")
def test_truncate_removes_vectors_and_pending_says_so_until_then(
    conninfo: str, connection: Connection, pipeline: Pipeline
) -> None:
    connection.execute("truncate reports")
    assert connection.execute(PENDING).fetchone() == (RECORDS, RECORDS, 1)
    assert not is_drained(connection, [pipeline.id])
    with open_session(conninfo) as session:
        work_once(session, pipeline)
        after = one_value(connection, SWEEPS)
        assert after > "", "the cursor is committed with what it has queued"
        assert connection.execute(PENDING).fetchone() == (RECORDS, RECORDS, 7 + 1)
        drain(session, pipeline)
    assert connection.execute(PENDING).fetchone() == (0, 0, 0)
    assert_converged(connection, "reports")


@pytest.mark.usefixtures("_small_slices")
def test_what_is_there_again_is_left_alone(
    conninfo: str, connection: Connection, pipeline: Pipeline
) -> None:
    connection.execute("create temporary table kept as select * from reports where id % 2 = 0")
    connection.execute("truncate reports; insert into reports select * from kept")
    with open_session(conninfo) as session:
        done = drain(session, pipeline)
    assert sum(each.commit.chunks for each in done) == 0, "no vector was computed again"
    assert_converged(connection, "reports")


def test_several_truncates_are_one_sweep(
    conninfo: str, connection: Connection, pipeline: Pipeline
) -> None:
    connection.execute("truncate reports")
    connection.execute("truncate reports")
    assert connection.execute(SWEEPS).fetchall() == [("",), ("",)]
    with open_session(conninfo) as session:
        work_once(session, pipeline)
        assert connection.execute(SWEEPS).fetchall() == []
        drain(session, pipeline)
    assert_converged(connection, "reports")


@pytest.mark.usefixtures("_small_slices")
def test_sweep_starts_over_for_a_truncate_that_comes_later(
    conninfo: str, connection: Connection, pipeline: Pipeline
) -> None:
    connection.execute("create temporary table kept as select * from reports")
    connection.execute("truncate reports; insert into reports select * from kept")
    with open_session(conninfo) as session:
        work_once(session, pipeline)
        assert connection.execute(SWEEPS).fetchone() != ("",)
        connection.execute("truncate reports")
        drain(session, pipeline)
    assert_converged(connection, "reports")


@pytest.mark.usefixtures("_small_slices")
def test_sweep_of_a_worker_that_dies_is_done_by_another(
    conninfo: str, connection: Connection, pipeline: Pipeline
) -> None:
    connection.execute("truncate reports")
    with open_session(conninfo) as dying:
        dying.connection.execute("begin")
        claim = claim_items(dying.connection, pipeline.id, limit=1)
        assert claim is not None
        sweep_slice(dying.connection, dying.side, pipeline, claim, slice_records=7)
        terminate(connection, dying.connection.info.backend_pid)
        with pytest.raises(psycopg.OperationalError):
            dying.connection.execute("commit")
    assert connection.execute(SWEEPS).fetchall() == [("",)]
    with open_session(conninfo) as session:
        drain(session, pipeline)
    assert_converged(connection, "reports")


def test_truncate_waits_for_a_claim_that_is_about_to_commit(
    conninfo: str, connection: Connection, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The re-check has locked the source: the sweep finds in the ledger what was written."""
    connection.execute("insert into reports values (100, 'committed just before')")
    with connect(conninfo) as user, ThreadPoolExecutor() as threads:
        truncating: list[Future[object]] = []

        def finish(claiming: Connection, claim: Claim) -> None:
            if not truncating:
                truncating.append(threads.submit(user.execute, "truncate public.reports"))
                wait_until_blocked(connection, user.info.backend_pid)
            finish_items(claiming, claim)

        monkeypatch.setattr(process, "finish_items", finish)
        with open_session(conninfo) as session:
            work_once(session, pipeline)
            truncating[0].result()
            written = "select count(*) from reports_chunks where fulltext_id = 100"
            assert connection.execute(written).fetchone() != (0,)
            drain(session, pipeline)
    assert_converged(connection, "reports")


def test_truncate_while_a_record_is_embedded(
    conninfo: str, connection: Connection, pipeline: Pipeline
) -> None:
    """The claim has read its text, and finds it gone under the mutex."""
    connection.execute("update reports set body = 'changed' where id <= 5")
    device = FakeDevice(
        dimensions=pipeline.dimensions,
        during=lambda: connection.execute("truncate reports"),
    )
    with open_session(conninfo) as session:
        work_once(session, pipeline, device)
        drain(session, pipeline)
    assert_converged(connection, "reports")


def test_sweep_that_killed_a_worker_runs_alone(
    conninfo: str, connection: Connection, pipeline: Pipeline
) -> None:
    connection.execute("truncate reports")
    connection.execute("update pgembed.work set alone = true, deaths = 3")
    with open_session(conninfo) as session:
        drain(session, pipeline)
    assert_converged(connection, "reports")


def test_sweep_of_a_source_that_is_gone_pauses_the_pipeline(
    conninfo: str, connection: Connection, pipeline: Pipeline
) -> None:
    connection.execute("truncate reports")
    connection.execute("drop table reports cascade")
    with open_session(conninfo) as session, pytest.raises(PipelineFault, match="does not exist"):
        work_once(session, pipeline)
    drop_pipeline(connection, pipeline, delete_vectors=True)
    assert connection.execute("select count(*) from pgembed.work").fetchone() == (0,)


def test_sweep_goes_over_to_the_next_generation(
    conninfo: str, connection: Connection, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgqueue_embed.lifecycle.alter.prepare", prepare_with_fake_model)
    monkeypatch.setattr("pgqueue_embed.lifecycle.alter.check_local_model", lambda _: None)
    successor = alter(connection, pipeline, Changes(chunk_tokens=12))
    assert successor is not None
    enqueue(connection, successor, Selection())
    with open_session(conninfo) as session:
        drain(session, successor)
        connection.execute("truncate reports")
        switched = switch(connection, pipeline)
        assert len(connection.execute(SWEEPS).fetchall()) == 2, "its own, and the old one's"
        drain(session, switched)
    assert_converged(connection, "reports")
