"""Real workers in real processes: they share, they die, they are stopped, and nothing is lost."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

from pgqueue_embed.db.session import Connection, connect
from tests.support.conditions import is_blocked, wait_until
from tests.support.corpus import texts
from tests.support.light import light_workers
from tests.support.oracle import assert_converged
from tests.support.pipelines import queue_all
from tests.support.processes import RunningWorker, pid_with_claim, workers

RECORDS = 400

# A lease that no claim outlasts, however slow the machine is.
PATIENT: dict[str, Any] = {"lease_seconds": 60.0}


def test_three_workers_drain_a_thousand_records_and_embed_each_once(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    queue_all(connection, texts(1_000, chunks=3))
    with light_workers(conninfo, tmp_path, 3, **PATIENT, concurrency=2) as running:
        assert [worker.wait() for worker in running] == ["drained"] * 3, running[0].log()
    assert_converged(connection, "reports")
    records, embedded, unchanged = connection.execute(
        "select sum(records), sum(embedded), sum(unchanged) from pgembed.batches"
    ).fetchone() or (0, 0, 0)
    assert (records, embedded, unchanged) == (1_000, 1_000, 0)


def test_killed_worker_processes_lose_no_record_and_double_none(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    queue_all(connection, texts(RECORDS))
    settings = {**PATIENT, "concurrency": 2, "batch_seconds": 0.2}
    with light_workers(conninfo, tmp_path, 2, **settings) as running:
        first = pid_with_claim(connection)
        os.kill(first, signal.SIGKILL)
        second = pid_with_claim(connection, other_than=[first])
        os.kill(second, signal.SIGKILL)
        assert [worker.wait() for worker in running] == ["drained"] * 2, running[0].log()
    assert_converged(connection, "reports")
    assert_crash_was_written_down(connection, first)
    assert_crash_was_written_down(connection, second)
    (dead,) = connection.execute("select count(*) from pgembed.dead_letters").fetchone() or (1,)
    assert dead == 0


def test_power_cut_of_a_machine_makes_no_record_suspect(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    queue_all(connection, texts(RECORDS))
    with workers(conninfo, tmp_path, 1, batch_seconds=0.3) as [lost]:
        pid = pid_with_claim(connection)
        lost.process.kill()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: progress(connection)[2] == 0, "the server frees the claim")
        assert attempts_left(connection) > 0
        folder = tmp_path / "another machine"
        folder.mkdir()
        with light_workers(conninfo, folder, **PATIENT) as [other]:
            assert other.wait() == "drained", other.log()
    assert_converged(connection, "reports")
    assert "suspect" not in other.log()
    assert connection.execute("select sum(failed) from pgembed.batches").fetchone() == (0,)


def assert_crash_was_written_down(connection: Connection, pid: int) -> None:
    (reason,) = connection.execute(
        "select stop_reason from pgembed.workers where pid = %s", (pid,)
    ).fetchone() or ("",)
    assert reason == "crashed: killed by SIGKILL"


def test_stopped_worker_finishes_its_claim_and_leaves_the_rest_queued(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    queue_all(connection, texts(RECORDS))
    with workers(conninfo, tmp_path, batch_seconds=0.3) as [worker]:
        pid_with_claim(connection)
        worker.stop()
        assert worker.wait() == 130, worker.log()
    said = worker.log()
    assert re.search(r"^finishing [12] claims? \(up to 16 s\); Ctrl-C again gives", said, re.M), (
        said
    )
    assert said.rstrip().endswith("interrupted; what was committed stays, and what is queued waits")
    done, pending, in_flight = progress(connection)
    assert done > 0
    assert (done + pending, in_flight) == (RECORDS, 0)
    assert attempts_left(connection) == 0
    reasons = connection.execute("select stop_reason from pgembed.workers").fetchall()
    assert reasons == [("stopped",)]


def test_worker_that_a_service_manager_stops_leaves_with_zero(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    queue_all(connection, texts(3))
    with workers(conninfo, tmp_path, 1, ["--concurrency", "1"]) as [worker]:
        wait_until(lambda: progress(connection)[0] == 3, "the worker has done it all")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.wait() == 0, worker.log()
    assert "interrupted" not in worker.log()
    assert "nothing is in hand" in worker.log() or "a second signal gives it back" in worker.log()


def stop_twice(connection: Connection, worker: RunningWorker) -> None:
    worker.stop()
    wait_until(lambda: "stopping" in states(connection), "the worker has heard")
    started = time.monotonic()
    worker.stop()
    assert worker.wait() == 130, worker.log()
    assert "giving back what is in hand" in worker.log()
    assert time.monotonic() - started < 10
    assert attempts_left(connection) == 0


def test_second_stop_gives_the_claim_back_at_once(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    queue_all(connection, texts(10, chunks=4000))
    with workers(conninfo, tmp_path, 1, ["--concurrency", "1"], batch_seconds=1.0) as [worker]:
        pid_with_claim(connection)
        stop_twice(connection, worker)
    assert progress(connection) == (0, 10, 0)


def test_second_stop_does_not_wait_for_the_lock_of_a_user(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    queue_all(connection, texts(10))
    with (
        connect(conninfo) as user,
        user.transaction(),
        workers(conninfo, tmp_path, 1, ["--concurrency", "1"]) as [worker],
    ):
        user.execute("lock table public.reports")
        wait_until(lambda: reader_waits(connection), "the worker waits for the user")
        stop_twice(connection, worker)
    assert progress(connection) == (0, 10, 0)


def reader_waits(connection: Connection) -> bool:
    readers = connection.execute(
        "select pid from pg_stat_activity"
        " where datname = current_database() and application_name = 'pgembed side'"
    ).fetchall()
    return any(is_blocked(connection, pid) for (pid,) in readers)


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
    queue_all(connection, texts(RECORDS))
    with workers(conninfo, tmp_path, batch_seconds=0.3) as [worker]:
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


def test_worker_whose_row_was_deleted_registers_again(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    queue_all(connection, texts(1))
    live = "select worker_id from pgembed.worker_status where state = 'working'"
    with light_workers(conninfo, tmp_path, drain=False):
        wait_until(lambda: connection.execute(live).fetchone() is not None, "the worker works")
        before = connection.execute(live).fetchone()
        connection.execute("delete from pgembed.workers")
        wait_until(
            lambda: connection.execute(live).fetchone() == before,
            "it is there again, under its number",
        )
