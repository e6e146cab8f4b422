"""Light worker processes: started in milliseconds, killed, frozen and woken by tests."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import psutil

from pgqueue_embed.db.session import connect
from pgqueue_embed.errors import PgembedError
from pgqueue_embed.log import LogSettings
from pgqueue_embed.worker import process, supervisor
from pgqueue_embed.worker.crashes import record_crash
from pgqueue_embed.worker.settings import WorkerSettings
from pgqueue_embed.worker.supervisor import Supervisor
from pgqueue_embed.worker.worker import Worker
from tests.support import light_worker
from tests.support.conditions import wait_until
from tests.support.fault_points import DSN_VARIABLE, FAULT_VARIABLE, Fault


def light_settings(**fields: Any) -> WorkerSettings:
    """Return settings of a worker that loses its lease and retries failures quickly."""
    quick = {"concurrency": 1, "drain": True, "lease_seconds": 1.0, "retry_delay_seconds": 0.01}
    return WorkerSettings(**{**quick, **fields})


@contextmanager
def environment(**variables: str | None) -> Iterator[None]:
    """Set environment variables for the processes started inside the block."""
    before = {name: os.environ.get(name) for name in variables}
    _set_environment(variables)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


# Processes without a supervisor ---------------------------------------------------------------


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([light_worker.__name__])
    return context


@dataclass
class LightProcess:
    """A worker process that is forked from a prepared one, with nobody to start it again."""

    process: Any
    log_file: Path
    conninfo: str

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def log(self) -> str:
        """Return what the worker has said."""
        return self.log_file.read_text(encoding="utf-8") if self.log_file.exists() else ""

    def wait(self, seconds: float = 30.0) -> int:
        """Return the exit code; fails the test, with the log, when it takes too long."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"the worker does not leave:\n{self.log()}"
        return self.process.exitcode

    def wait_until_frozen(self) -> None:
        """Return once the process has stopped itself."""
        stopped = psutil.STATUS_STOPPED
        wait_until(lambda: psutil.Process(self.pid).status() == stopped, "the worker freezes")

    def wake(self) -> None:
        """Let a frozen process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def record_crash(self) -> None:
        """Do what a supervisor does when its worker process has crashed."""
        with connect(self.conninfo) as connection:
            (worker_id,) = connection.execute(
                "select id from pgembed.workers where pid = %s", (self.pid,)
            ).fetchone() or (0,)
            record_crash(connection, worker_id, "crashed")


def _run(conninfo: str, settings: WorkerSettings, log_file: str, variables: dict[str, str]) -> None:
    os.environ.update(variables)
    light_worker.prepare()
    LogSettings(file=log_file).apply()
    Worker(conninfo, settings).run()
    os._exit(0)


@contextmanager
def light_process(
    conninfo: str, folder: Path, *, fault: Fault | None = None, **fields: Any
) -> Iterator[LightProcess]:
    """Run one worker process (`fields` are of WorkerSettings); it does not outlive the block."""
    log_file = folder / f"light-{len(list(folder.iterdir()))}.log"
    variables = {FAULT_VARIABLE: str(fault or ""), DSN_VARIABLE: conninfo}
    arguments = (conninfo, light_settings(**fields), str(log_file), variables)
    process = _context().Process(target=_run, args=arguments, daemon=True)
    process.start()
    try:
        yield LightProcess(process, log_file, conninfo)
    finally:
        process.kill()
        process.join(10)
        process.close()


# Supervised processes -------------------------------------------------------------------------


class ForkedWorker:
    """Fulfils what a supervisor asks of Popen: a worker process forked from a prepared one.

    A start of Python would take most of a second of a core each time.
    """

    def __init__(self, _module: str, *, pass_fds: tuple[int], **_: Any) -> None:
        (reports,) = pass_fds
        orders, stdin = os.pipe()
        self.stdin = os.fdopen(stdin, "wb")
        pipes = (Pipe(orders, writable=False), Pipe(os.dup(reports), readable=False))
        arguments = (*pipes, dict(os.environ))
        self._process = _context().Process(target=_obey, args=arguments, daemon=True)
        self._process.start()
        for pipe in pipes:
            pipe.close()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, or the negative number of the signal that ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return `returncode`."""
        return self.returncode

    def terminate(self) -> None:
        """Ask it to leave."""
        self._process.terminate()

    def kill(self) -> None:
        """End it."""
        self._process.kill()


def _obey(orders: Pipe, reports: Pipe, variables: dict[str, str]) -> None:
    """Do what a worker process does; the descriptor of reports that it is told is its parent's."""
    os.setsid()
    os.environ.clear()
    os.environ.update(variables)
    sys.stdin = os.fdopen(orders.fileno(), closefd=False)
    reporter = process.Reporter(reports.fileno())
    vars(process)["Reporter"] = lambda _descriptor: reporter
    light_worker.main()


class ThreadSupervisor(Supervisor):
    """The real supervisor, in a thread of the test."""

    @property
    def worker_pid(self) -> int | None:
        """The process id of the worker process that runs now."""
        return self._process.popen.pid if self._process else None


@dataclass
class Supervised:
    """A supervisor in a thread, with a light worker process."""

    supervisor: ThreadSupervisor
    log_file: Path
    thread: threading.Thread = field(init=False)
    ending: str | None = None
    error: PgembedError | None = None

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.ending = self.supervisor.run()
        except PgembedError as error:
            self.error = error

    @property
    def pid(self) -> int | None:
        """The process id of the worker process that runs now."""
        return self.supervisor.worker_pid

    def send(self, number: signal.Signals) -> bool:
        """Send a signal to the worker process; returns whether there was one."""
        pid = self.pid
        if pid is None:
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def log(self) -> str:
        """Return what the worker processes have said."""
        return self.log_file.read_text(encoding="utf-8") if self.log_file.exists() else ""

    def wait(self, seconds: float = 60.0) -> str:
        """Return why the work ended; fails the test, with the log, if it ended in an error."""
        self.thread.join(seconds)
        assert not self.thread.is_alive(), f"the worker does not leave:\n{self.log()[-3000:]}"
        assert self.error is None, f"{self.error}\n{self.log()[-3000:]}"
        assert self.ending is not None
        return self.ending

    def again(self) -> Supervised:
        """Return another supervisor with the same orders."""
        ended = self.supervisor
        orders = (ended._conninfo, ended._settings, ended._log)
        return Supervised(ThreadSupervisor(*orders), self.log_file)

    def end(self) -> None:
        """Stop it by all means."""
        for _ in range(3):
            self.send(signal.SIGCONT)
            self.supervisor.stop()
            self.thread.join(3)


@contextmanager
def light_workers(
    conninfo: str,
    folder: Path,
    count: int = 1,
    *,
    fault: Fault | None = None,
    batch_seconds: float = 0.0,
    **fields: Any,
) -> Iterator[list[Supervised]]:
    """Run supervised light workers (`fields` are those of WorkerSettings) while the block lasts."""
    variables = {
        FAULT_VARIABLE: str(fault or ""),
        DSN_VARIABLE: conninfo,
        light_worker.SECONDS_VARIABLE: str(batch_seconds),
    }
    with environment(**variables), light_program():
        running = [
            _supervise(conninfo, light_settings(**fields), folder / f"supervised-{number}.log")
            for number in range(count)
        ]
        try:
            yield running
        finally:
            for each in running:
                each.end()


def _supervise(conninfo: str, settings: WorkerSettings, log_file: Path) -> Supervised:
    log = LogSettings(file=str(log_file))
    return Supervised(ThreadSupervisor(conninfo, settings, log), log_file)


@contextmanager
def light_program() -> Iterator[None]:
    """Supervisors in this process start workers whose model is the light one."""
    usual = vars(supervisor)["start_python"]
    vars(supervisor)["start_python"] = ForkedWorker
    try:
        yield
    finally:
        vars(supervisor)["start_python"] = usual
