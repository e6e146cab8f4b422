"""`work --processes`: several processes of one command, and as many as help."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import SetupError, UsageError
from pgqueue_embed.log import LogSettings
from pgqueue_embed.worker import growth
from pgqueue_embed.worker.growth import WORTH, wanted_processes
from pgqueue_embed.worker.processes import WorkerProcesses
from pgqueue_embed.worker.settings import WorkerSettings, check_processes
from pgqueue_embed.worker.stop_reasons import DRAINED, STOPPED
from tests.support import light_worker
from tests.support.conditions import wait_until
from tests.support.corpus import texts
from tests.support.light import ThreadSupervisor, light_program, light_settings
from tests.support.pipelines import queue_documents
from tests.support.rows import one_value

LIVE = "select count(*) from pgembed.workers where stopped_at is null"


class Command(threading.Thread):
    """What the command does but for its signals, in a thread of the test."""

    def __init__(
        self, conninfo: str, folder: Path, count: int | None, settings: WorkerSettings
    ) -> None:
        super().__init__(daemon=True)
        log = LogSettings(file=str(folder / "work.log"))
        self.supervisors: list[ThreadSupervisor] = []

        def start() -> ThreadSupervisor:
            self.supervisors.append(ThreadSupervisor(conninfo, settings, log))
            return self.supervisors[-1]

        self.told: list[str] = []
        self.processes = WorkerProcesses(start, count, conninfo, tell=self.told.append)
        self.reason: str | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.reason = self.processes.run()
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self.error = error

    def ended(self) -> str:
        self.join(60)
        assert not self.is_alive()
        assert self.error is None, self.error
        assert self.reason is not None
        return self.reason


@pytest.fixture(autouse=True)
def _in_a_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(signal, "signal", lambda *_: signal.SIG_DFL)
    with light_program():
        yield


@pytest.mark.parametrize("are_cores_shared_out", [False, True])
def test_several_processes_share_the_work_and_leave_when_it_is_done(
    conninfo: str,
    connection: Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    are_cores_shared_out: bool,
) -> None:
    if not are_cores_shared_out:
        monkeypatch.delenv("OMP_NUM_THREADS")
    queue_documents(connection, texts(200))
    command = Command(conninfo, tmp_path, 3, light_settings(drain=True))

    command.start()

    assert command.ended() == DRAINED
    said = [] if are_cores_shared_out else ["3 processes on one CPU are slower than one"]
    assert [each.partition(",")[0] for each in command.told] == said
    assert one_value(connection, "select count(*) from pgembed.workers") == 3
    assert one_value(connection, "select done from pgembed.progress") == 200
    assert one_value(connection, LIVE) == 0


def test_stop_is_for_all_and_one_that_is_killed_comes_back(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    queue_documents(connection, texts(5))
    command = Command(conninfo, tmp_path, 2, light_settings(drain=False))
    command.start()
    wait_until(lambda: one_value(connection, LIVE) == 2, "both are live")
    pid = command.supervisors[0].worker_pid
    assert pid is not None

    os.kill(pid, signal.SIGKILL)
    wait_until(
        lambda: one_value(connection, "select count(*) from pgembed.workers") == 3, "a third one"
    )
    wait_until(lambda: one_value(connection, LIVE) == 2, "two are live again")
    command.processes.stop()

    assert command.ended() == STOPPED
    assert one_value(connection, LIVE) == 0


def test_one_that_cannot_start_stops_the_others(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    queue_documents(connection, texts(5))
    command = Command(conninfo, tmp_path, 2, light_settings(drain=False))
    supervisors = iter([command.processes._start(), failing_supervisor(conninfo)])
    command.processes._start = lambda: next(supervisors)

    command.start()
    command.join(60)

    assert not command.is_alive()
    assert isinstance(command.error, SetupError)
    assert one_value(connection, LIVE) == 0


@pytest.mark.parametrize(
    ("rates", "settled"),
    [
        ((100, 195, 250, 255, 400), 3),
        ((100, 105), 1),
        ((100, 60), 1),
    ],
)
def test_processes_are_added_as_long_as_they_help(
    conninfo: str,
    connection: Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rates: Sequence[float],
    settled: int,
) -> None:
    queue_documents(connection, texts(5))
    monkeypatch.setattr(growth, "SETTLING_SECONDS", 0.1)
    monkeypatch.setattr(growth, "POLL_SECONDS", 0.02)
    # The rates of a machine with a GPU: what is asked of the database but the number of workers.
    monkeypatch.setattr(
        growth,
        "RATE",
        "select false, (%(rates)s::float[])[cardinality(%(ids)s::bigint[])], 1".replace(
            "%(rates)s", f"'{{{','.join(map(str, rates))}}}'"
        ),
    )
    command = Command(conninfo, tmp_path, None, light_settings(drain=False))
    command.start()
    growing = command.processes._growth
    assert growing is not None

    wait_until(growing._done.is_set, "it has settled")
    wait_until(lambda: one_value(connection, LIVE) == settled, f"{settled} are live")

    assert growing.wanted == settled
    assert len(command.supervisors) == settled + 1, "one more was tried"
    command.processes.stop()
    assert command.ended() == STOPPED
    assert one_value(connection, LIVE) == 0


def test_a_machine_whose_cores_compute_has_one_process(
    conninfo: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue_documents(connection, texts(500))
    monkeypatch.setattr(growth, "SETTLING_SECONDS", 0.1)
    monkeypatch.setattr(growth, "POLL_SECONDS", 0.02)
    monkeypatch.setenv(light_worker.SECONDS_VARIABLE, "0.2")
    command = Command(conninfo, tmp_path, None, light_settings(drain=False))
    command.start()
    growing = command.processes._growth
    assert growing is not None

    wait_until(growing._done.is_set, "it has settled")
    command.processes.stop()

    assert command.ended() == STOPPED
    assert len(command.supervisors) == 1


def test_another_process_is_tried_without_a_gpu_where_the_model_costs_next_to_nothing(
    conninfo: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue_documents(connection, texts(20_000))
    monkeypatch.setattr(growth, "SETTLING_SECONDS", 0.5)
    monkeypatch.setattr(growth, "POLL_SECONDS", 0.02)
    command = Command(conninfo, tmp_path, None, light_settings(drain=False))
    command.start()

    wait_until(lambda: len(command.supervisors) == 2, "a second one is tried")
    command.processes.stop()

    assert command.ended() == STOPPED
    assert not command.told


def test_added_process_that_fails_is_done_without(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    queue_documents(connection, texts(5))
    command = Command(conninfo, tmp_path, None, light_settings(drain=False))
    command.start()
    wait_until(lambda: one_value(connection, LIVE) == 1, "one is live")
    growing = command.processes._growth
    assert growing is not None
    failing = failing_supervisor(conninfo)
    command.processes._start = lambda: failing

    growing.wanted = 2
    wait_until(growing._done.is_set, "it is done without")
    time.sleep(0.5)  # nothing more happens

    assert one_value(connection, LIVE) == 1
    command.processes.stop()
    assert command.ended() == STOPPED


class Failing(ThreadSupervisor):
    """One whose process cannot be had."""

    def run(self) -> str:
        raise SetupError("CUDA out of memory")


def failing_supervisor(conninfo: str) -> ThreadSupervisor:
    return Failing(conninfo, light_settings(drain=False), LogSettings())


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=16))
def test_one_more_is_tried_only_where_the_last_has_helped(rates: list[float]) -> None:
    wanted = wanted_processes(rates, most=16)

    helped = len(rates) == 1 or rates[-1] >= WORTH * rates[-2]
    assert wanted == (min(len(rates) + 1, 16) if helped else len(rates) - 1)
    assert 1 <= wanted <= 16


@pytest.mark.parametrize("wanted", ["0", "17", "-1", "two", "", "1.5", "²"])
def test_number_that_cannot_be_is_refused(wanted: str) -> None:
    with pytest.raises(UsageError, match="give auto, or 1 to 16"):
        check_processes(wanted)
