"""Real workers in real processes: they share, they die, they are stopped, and nothing is lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pgqueue_embed.connect import Connection
from pgqueue_embed.create import create
from pgqueue_embed.enqueue import Selection, enqueue
from pgqueue_embed.settings import DEFAULT_MODEL, Pipeline, Table
from pgqueue_embed.spec import PipelineSpec
from tests.support.conditions import wait_until
from tests.support.corpus import make_source, texts
from tests.support.models import make_tiny_model
from tests.support.oracle import assert_converged
from tests.support.processes import pid_with_claim, workers


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def queued_pipeline(
    connection: Connection, documents: list[str], model: str = DEFAULT_MODEL
) -> Pipeline:
    source = make_source(connection, documents)
    spec = PipelineSpec(
        name="reports",
        source=source,
        target=Table(schema="public", name="vectors"),
        text_fields=("body",),
    )
    pipeline = create(connection, spec, model).pipeline
    assert enqueue(connection, pipeline, Selection()) == len(documents)
    return pipeline


def test_three_workers_drain_five_thousand_records_and_embed_each_once(
    conninfo: str, connection: Connection, tiny_model: Path, tmp_path: Path
) -> None:
    queued_pipeline(connection, texts(5_000, chunks=3), str(tiny_model))
    with workers(conninfo, tmp_path, 3, ["--drain", "--concurrency", "2"]) as running:
        assert [worker.wait() for worker in running] == [0, 0, 0], running[0].log()
    assert_converged(connection, "reports")
    records, embedded, unchanged = connection.execute(
        "select sum(records), sum(embedded), sum(unchanged) from pgembed.batches"
    ).fetchone() or (0, 0, 0)
    assert (records, embedded, unchanged) == (5_000, 5_000, 0)


def test_killed_worker_processes_lose_no_record_and_double_none(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    queued_pipeline(connection, texts(400, chunks=20))
    with workers(conninfo, tmp_path, 2, ["--drain", "--concurrency", "2"]) as running:
        first = pid_with_claim(connection)
        os.kill(first, signal.SIGKILL)
        second = pid_with_claim(connection, other_than=[first])
        os.kill(second, signal.SIGKILL)
        assert [worker.wait() for worker in running] == [0, 0], running[0].log()
    assert_converged(connection, "reports")
    assert_crash_was_written_down(connection, first)
    assert_crash_was_written_down(connection, second)
    (dead,) = connection.execute("select count(*) from pgembed.dead_letters").fetchone() or (1,)
    assert dead == 0


def assert_crash_was_written_down(connection: Connection, pid: int) -> None:
    (reason,) = connection.execute(
        "select stop_reason from pgembed.workers where pid = %s", (pid,)
    ).fetchone() or ("",)
    assert reason == "crashed: killed by SIGKILL"


def test_stopped_worker_finishes_its_claim_and_leaves_the_rest_queued(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    queued_pipeline(connection, texts(400, chunks=20))
    with workers(conninfo, tmp_path) as [worker]:
        pid_with_claim(connection)
        worker.stop()
        assert worker.wait() == 0, worker.log()
    done, pending, in_flight = progress(connection)
    assert done > 0
    assert (done + pending, in_flight) == (400, 0)
    assert attempts_left(connection) == 0
    assert "reason=stopped" in worker.log()


def test_second_stop_gives_the_claim_back_at_once(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    queued_pipeline(connection, texts(60, chunks=400))
    with workers(conninfo, tmp_path, 1, ["--concurrency", "1"]) as [worker]:
        pid_with_claim(connection)
        worker.stop()
        wait_until(lambda: "stopping" in states(connection) or worker.process.poll() is None, "")
        worker.stop()
        assert worker.wait() == 0, worker.log()
    _, pending, in_flight = progress(connection)
    assert pending > 0
    assert in_flight == 0
    assert attempts_left(connection) == 0


def states(connection: Connection) -> list[str]:
    return [state for (state,) in connection.execute("select state from pgembed.workers")]


def progress(connection: Connection) -> tuple[int, int, int]:
    row = connection.execute("select done, pending, in_flight from pgembed.progress").fetchone()
    assert row is not None
    return row


def attempts_left(connection: Connection) -> int:
    (count,) = connection.execute("select count(*) from pgembed.attempts").fetchone() or (-1,)
    return count


def test_worker_whose_supervisor_is_killed_leaves_by_itself(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    queued_pipeline(connection, texts(400, chunks=20))
    with workers(conninfo, tmp_path) as [worker]:
        pid = pid_with_claim(connection)
        worker.process.kill()
        wait_until(lambda: not is_running(pid), "the orphaned worker process leaves", seconds=60)
    assert progress(connection)[2] == 0
    assert attempts_left(connection) == 0


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
