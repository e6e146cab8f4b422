"""The parent of a worker process: starts it, starts it again after a crash, writes crashes down.

The worker is spawned, never forked (a fork after Metal has started kills the child), in a process
group of its own, so that Ctrl-C reaches it once, through us. A process that ends without having
reported its exit has crashed, whatever its exit code.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import psycopg

from pgqueue_embed.db.errors import first_line, is_away
from pgqueue_embed.db.session import BOOKKEEPING_SECONDS, connect
from pgqueue_embed.errors import MachineFault, PgembedError, SetupError
from pgqueue_embed.log import LogSettings, get_logger
from pgqueue_embed.worker.crashes import Crash, Evidence, record_crash
from pgqueue_embed.worker.delays import reconnect_delay_seconds, restart_delay_seconds
from pgqueue_embed.worker.process import Orders
from pgqueue_embed.worker.python_process import start_python
from pgqueue_embed.worker.settings import WorkerSettings
from pgqueue_embed.worker.stop_reasons import ANOTHER_MODEL, CRASHED, RECYCLED, STALLED, STOPPED

TICK_SECONDS = 0.2

# What a worker process runs; tests put one with a model that costs nothing in its place.
WORKER_PROGRAM = "pgqueue_embed.worker.process"

# How long a worker process may take to say what it has in hand, before a person hears the most.
ANSWER_SECONDS = 0.7

# A machine whose worker dies so often before its first claim will not get better by itself.
MAX_STARTUP_CRASHES = 3

# How a process ends that we signalled before it could listen, or at the third request.
STOP_CODES = (-signal.SIGTERM, -signal.SIGKILL)


@dataclass(kw_only=True)
class _Process:
    """One worker process and what it has reported so far."""

    popen: subprocess.Popen[bytes]
    reports: int
    worker_id: int | None = None
    device: str | None = None
    ended: str | None = None
    model: str | None = None
    settled: int = 0
    failed: str | None = None
    exit_code: int = 1
    claims_in_hand: int | None = None
    left: dict[str, str] = field(default_factory=dict)
    unserved: list[tuple[int, str]] = field(default_factory=list)
    unavailable: bool = False
    signals: int = 0
    unread: bytes = field(default=b"", repr=False)

    def read_reports(self) -> None:
        """Take in whatever the process has reported since the last call."""
        while chunk := _read_available(self.reports):
            self.unread += chunk
        *lines, self.unread = self.unread.split(b"\n")
        for line in lines:
            for name, value in json.loads(line).items():
                setattr(self, name, value)

    @property
    def crashed(self) -> bool:
        """Whether the process is gone without having said why, or because its device hung."""
        stopped_by_us = self.signals and self.popen.returncode in STOP_CODES
        silent = self.ended is None and self.failed is None and not stopped_by_us
        return silent or self.ended == STALLED

    def describe_end(self) -> str:
        """Return how the process ended, for people."""
        code = self.popen.returncode
        if self.ended == STALLED:
            return STALLED
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exited with code {code}"


def _read_available(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except BlockingIOError:
        return b""


class Supervisor:
    """Keeps one worker process at work until the work, or the user's patience, ends."""

    def __init__(
        self,
        conninfo: str,
        settings: WorkerSettings,
        log: LogSettings,
        *,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """What a person who stops it wants to know at once, one line, is handed to `tell`."""
        self._conninfo = conninfo
        self._settings = settings
        self._log = log
        self._tell = tell
        self.left: dict[str, str] = {}
        self._stops = 0
        self._stopped_at: float | None = None
        self._told_stops = 0
        self.interrupted = False
        self._process: _Process | None = None
        self._crashes_in_a_row = 0
        self._startup_crashes = 0
        self._evidence = Evidence()
        self._has_worked = False
        self._failed_starts = 0

    def run(self) -> str:
        """Work until it ends, and return why: drained, stopped, or the record limit reached.

        Raises SetupError for what the worker could not start with, MachineFault when this machine
        kills its workers whatever they do.
        """
        while True:
            process = self._start()
            self._wait(process)
            if process.crashed:
                self._after_crash(process)
            elif process.failed is not None:
                self._after_failure(process)
            elif process.ended not in (ANOTHER_MODEL, RECYCLED):
                self.left = process.left
                return process.ended or STOPPED
            if self._stops:
                return STOPPED
            if process.settled:
                self._crashes_in_a_row, self._evidence = 0, Evidence()
            self._settings = replace(
                self._settings, last_model=process.model, unserved=tuple(process.unserved)
            )

    @property
    def worker_id(self) -> int | None:
        """The number of the worker that runs now; None until it is ready to claim."""
        return None if self._process is None else self._process.worker_id

    @property
    def device(self) -> str | None:
        """What the worker that runs now computes on; None until it is ready to claim."""
        return None if self._process is None else self._process.device

    def stop(self) -> None:
        """Ask for the end: after the claim in hand, at once, and the third time by force.

        From any thread; the one that runs the worker sends the signals, one at a time.
        """
        self._stopped_at = self._stopped_at or time.monotonic()
        self._stops += 1

    def _start(self) -> _Process:
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        popen = start_python(
            WORKER_PROGRAM,
            stdin=subprocess.PIPE,
            pass_fds=(writing,),
            start_new_session=True,
        )
        os.close(writing)
        orders = Orders(
            conninfo=self._conninfo,
            settings=self._settings,
            log=self._log,
            report_descriptor=writing,
        )
        process = _Process(popen=popen, reports=reading)
        self._process = process
        _send(popen, orders.to_line())
        return process

    def _wait(self, process: _Process) -> None:
        while process.popen.poll() is None:
            process.read_reports()
            self._forward(process)
            self._tell_of_stop(process)
            time.sleep(TICK_SECONDS)
        process.read_reports()
        self._tell_of_stop(process)
        if process.worker_id is not None:
            self._has_worked, self._failed_starts = True, 0
        os.close(process.reports)
        if process.popen.stdin:
            process.popen.stdin.close()
        self._process = None

    def _tell_of_stop(self, process: _Process) -> None:
        """Say once what a first and a second stop do, as soon as the process has said its part."""
        if self._told_stops >= min(self._stops, 2) or self._stopped_at is None:
            return
        may_answer = process.worker_id is not None and process.popen.returncode is None
        is_waited_for = may_answer and process.claims_in_hand is None
        if is_waited_for and time.monotonic() < self._stopped_at + ANSWER_SECONDS:
            return
        self._told_stops = min(self._stops, 2)
        self._tell(self._what_a_stop_does(process))

    def _what_a_stop_does(self, process: _Process) -> str:
        if self._stops > 1:
            return "giving back what is in hand"
        claims = process.claims_in_hand
        has_left = process.worker_id is None or process.popen.returncode is not None
        if claims == 0 or has_left:
            return "stopping; nothing is in hand"
        number = self._settings.concurrency if claims is None else claims
        again = "Ctrl-C again gives" if self.interrupted else "a second signal gives"
        # A claim takes as long as planned, and as long again while it waits for the device.
        seconds = 2 * min(self._settings.claim_seconds, self._settings.lease_seconds / 2)
        some = "1 claim" if number == 1 else f"{number} claims"
        them = "it" if number == 1 else "them"
        return f"finishing {some} (up to {seconds:.0f} s); {again} {them} back"

    def _forward(self, process: _Process) -> None:
        """Send the next of the signals that are due; two at once would arrive as one."""
        if process.signals >= self._stops or process.popen.poll() is not None:
            return
        process.signals += 1
        if process.signals >= 3:
            process.popen.kill()
        else:
            process.popen.terminate()

    def _after_failure(self, process: _Process) -> None:
        """Wait for a database that was there before; raise anything else that failed."""
        if not (process.unavailable and self._has_worked):
            raise _failure(process)
        get_logger().warning("worker cannot start yet", reason=process.failed)
        self._pause(reconnect_delay_seconds(self._failed_starts, jitter=0.5))
        self._failed_starts += 1

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._stops:
            time.sleep(min(TICK_SECONDS, seconds))

    def _after_crash(self, process: _Process) -> None:
        how = process.describe_end()
        get_logger().error("worker process died", how=how, worker=process.worker_id)
        crash = self._record(process.worker_id, how) if process.worker_id else None
        self._judge_machine(crash, how, was_ready=process.worker_id is not None)
        self._pause(restart_delay_seconds(self._crashes_in_a_row))

    def _judge_machine(self, crash: Crash | None, how: str, *, was_ready: bool) -> None:
        """Raise MachineFault when the crashes so far say that no record is to blame."""
        # One that was ready could claim, if only there had been something to claim.
        self._startup_crashes = 0 if was_ready else self._startup_crashes + 1
        has_settled = crash is not None and crash.settled
        self._crashes_in_a_row = 1 if has_settled else self._crashes_in_a_row + 1
        if self._startup_crashes >= MAX_STARTUP_CRASHES:
            raise MachineFault(
                f"the worker process died {self._startup_crashes} times before it could claim"
                f" anything (the last one {how}); run pgembed doctor on this machine"
            )
        if crash is None:
            return
        self._evidence = self._evidence.with_crash(crash)
        if (died_on := self._evidence.summary) is not None:
            raise MachineFault(
                f"the worker process died on {died_on} with nothing embedded in between (the last"
                f" time {how}): this machine is at fault, not the records; look at its memory and"
                " its GPU driver"
            )

    def _record(self, worker_id: int, how: str) -> Crash | None:
        """Write the crash down, however long the database is away, unless told to stop."""
        failures = 0
        while True:
            try:
                with connect(self._conninfo, patience_seconds=BOOKKEEPING_SECONDS) as connection:
                    return record_crash(connection, worker_id, CRASHED + how)
            except (PgembedError, psycopg.Error) as error:
                if not is_away(error):
                    raise
                reason = first_line(error)
                get_logger().warning("cannot write the death down yet", reason=reason)
            if self._stops:
                return None
            time.sleep(reconnect_delay_seconds(failures, jitter=0.5))
            failures += 1


def _send(popen: subprocess.Popen[bytes], line: bytes) -> None:
    """Give the orders and leave the pipe open: its end tells the worker that we are gone."""
    try:
        if popen.stdin:
            popen.stdin.write(line)
            popen.stdin.flush()
    except BrokenPipeError:
        pass  # it died at once, which _wait is about to see


def _failure(process: _Process) -> SetupError:
    error = SetupError(process.failed or "the worker failed")
    error.exit_code = process.exit_code
    return error
