"""The command in processes of its own: started, watched through the database, killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pgqueue_embed.db.session import Connection
from tests.support.conditions import wait_until
from tests.support.light import environment
from tests.support.light_worker import SECONDS_VARIABLE

EXIT_SECONDS = 120.0


@dataclass
class RunningWorker:
    """One `pgembed work`: a supervisor and the worker process that it keeps alive."""

    process: subprocess.Popen[bytes]
    log_file: Path

    def wait(self, *, seconds: float = EXIT_SECONDS) -> int:
        """Return the exit code; fails the test, with the log, when it takes too long."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker does not leave:\n{self.log()}") from None

    def stop(self) -> None:
        """Ask the worker to leave, as Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)

    def log(self) -> str:
        """Return what the worker has said."""
        return self.log_file.read_text(encoding="utf-8")


@contextmanager
def workers(
    conninfo: str,
    folder: Path,
    count: int = 1,
    arguments: Sequence[str] = (),
    *,
    batch_seconds: float = 0.0,
) -> Iterator[list[RunningWorker]]:
    """Start `count` workers with their logs in `folder`; none outlives the block.

    Their model is the light one, which takes `batch_seconds` for a batch.
    """
    with environment(**{SECONDS_VARIABLE: str(batch_seconds)}):
        running = [_start(conninfo, folder / f"worker-{n}.log", arguments) for n in range(count)]
    try:
        yield running
    finally:
        for worker in running:
            _end(worker.process)


def _start(conninfo: str, log_file: Path, arguments: Sequence[str]) -> RunningWorker:
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.light_command", "work", *arguments],
            env={**os.environ, "PGEMBED_DSN": conninfo, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return RunningWorker(process=process, log_file=log_file)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a supervisor and, by its closed pipe, its worker process."""
    for sign in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(sign)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                continue


def pid_with_claim(observer: Connection, *, other_than: Sequence[int] = ()) -> int:
    """Wait until a worker process holds a claim, and return its process id."""
    found: list[int] = []

    def somebody_works() -> bool:
        rows = observer.execute("select distinct pid from pgembed.in_flight").fetchall()
        found[:] = [pid for (pid,) in rows if pid is not None and pid not in other_than]
        return bool(found)

    wait_until(somebody_works, "a worker process holds a claim", seconds=EXIT_SECONDS)
    return found[0]
