"""A worker that dies, freezes or loses its connection at any step of a claim loses nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import LeaseLost
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support import fault_points
from tests.support.conditions import wait_until
from tests.support.corpus import make_source, texts
from tests.support.fakes import FakeDevice
from tests.support.fault_points import CLAIMED, POINTS, SLOW_INSERT, Fault
from tests.support.light import light_process
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.rows import one_value
from tests.support.working import drain, open_session, work_once

RECORDS = 30

# In the model, between two statements of the write, inside one, and at the end of it.
FROZEN_AT = ("after_attempt", "mid_embed", "after_mutex", "mid_insert", "before_commit")


@pytest.fixture
def pipeline(connection: Connection) -> Pipeline:
    """A pipeline with everything queued, and with records that are embedded already."""
    make_source(connection, [*texts(RECORDS, chunks=2), None])
    made = make_pipeline(connection)
    enqueue(connection, made, Selection())
    return made


def embedded_so_far(connection: Connection) -> int:
    query = "select count(*) from pgembed.records where state = 'embedded'"
    return one_value(connection, query)


@pytest.mark.parametrize("point", POINTS)
def test_worker_killed_at_any_step_loses_nothing_and_doubles_nothing(
    connection: Connection, conninfo: str, pipeline: Pipeline, tmp_path: Path, point: str
) -> None:
    connection.execute(SLOW_INSERT)
    fault = Fault(point, "kill", tmp_path / "struck")
    with light_process(conninfo, tmp_path, fault=fault, lease_seconds=30) as worker:
        assert worker.wait() == -9, worker.log()
        worker.record_crash()
    before = embedded_so_far(connection)
    assert (before > 0) == (point == "after_commit")
    with open_session(conninfo, worker_id=0) as session:
        drain(session, pipeline)
    assert_converged(connection, "reports")
    assert_each_record_was_committed_once(connection)


def assert_each_record_was_committed_once(connection: Connection) -> None:
    query = "select sum(embedded), sum(empty), sum(dead), sum(failed) from pgembed.batches"
    assert connection.execute(query).fetchone() == (RECORDS, 1, 0, 0)


@pytest.fixture
def striking(monkeypatch: pytest.MonkeyPatch, conninfo: str) -> Iterator[None]:
    """Faults strike in this process, and know its database."""
    monkeypatch.setenv(fault_points.DSN_VARIABLE, conninfo)
    yield
    fault_points.install()


def in_mid_embed() -> None:
    fault_points.reach("mid_embed")


@pytest.mark.usefixtures("striking")
@pytest.mark.parametrize("point", CLAIMED)
def test_back_end_terminated_at_any_step_gives_the_claim_back(
    connection: Connection, conninfo: str, pipeline: Pipeline, tmp_path: Path, point: str
) -> None:
    connection.execute(SLOW_INSERT)
    fault = Fault(point, "terminate", tmp_path / "struck")
    undo = fault_points.install(fault)
    try:
        with open_session(conninfo) as session, pytest.raises(LeaseLost):
            work_once(session, pipeline, FakeDevice(during=in_mid_embed))
    finally:
        undo()
    assert fault.has_struck()
    assert embedded_so_far(connection) == 0
    attempts = connection.execute("select count(*) from pgembed.attempts").fetchone()
    assert attempts == (0,)
    with open_session(conninfo) as session:
        drain(session, pipeline)
    assert_converged(connection, "reports")
    assert_each_record_was_committed_once(connection)


@pytest.mark.usefixtures("striking")
@pytest.mark.parametrize("point", ["after_attempt", "after_read", "after_mutex", "before_commit"])
def test_fault_of_the_program_rolls_the_claim_back_and_charges_nobody(
    connection: Connection, conninfo: str, pipeline: Pipeline, tmp_path: Path, point: str
) -> None:
    undo = fault_points.install(Fault(point, "raise", tmp_path / "struck"))
    started = time.monotonic()
    try:
        with open_session(conninfo) as session, pytest.raises(RuntimeError, match="itself"):
            work_once(session, pipeline)
    finally:
        undo()
    # Nothing that it cleans up afterwards waits for the lease of its own claim.
    assert time.monotonic() - started < 10
    with open_session(conninfo) as session:
        drain(session, pipeline)
    assert_converged(connection, "reports")
    assert_each_record_was_committed_once(connection)


@pytest.mark.parametrize("point", FROZEN_AT)
def test_worker_that_froze_past_its_lease_drops_its_results_and_goes_on(
    connection: Connection, conninfo: str, pipeline: Pipeline, tmp_path: Path, point: str
) -> None:
    connection.execute(SLOW_INSERT)
    fault = Fault(point, "stop", tmp_path / "struck")
    with light_process(conninfo, tmp_path, fault=fault) as sleeper:
        wait_until(fault.has_struck, "the worker reaches the point")
        sleeper.wait_until_frozen()
        with open_session(conninfo, worker_id=0) as other:
            drain(other, pipeline)
        assert_only_attempts_are_left(connection)
        enqueue(connection, pipeline, Selection(everything=True))
        sleeper.wake()
        assert sleeper.wait() == 0
        assert "claim given back" in sleeper.log()
        assert sleeper.log().count("batch committed") > 0
    assert_converged(connection, "reports")


def assert_only_attempts_are_left(connection: Connection) -> None:
    """Fail unless the records have converged while the sleeper may still have an attempt."""
    kept = connection.execute("delete from pgembed.attempts returning *").fetchall()
    assert len(kept) <= 1
    assert_converged(connection, "reports")
