"""A worker inside a Python program's own process: start, stop, wait."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import TracebackType

import psycopg

from pgqueue_embed.api.database import Database
from pgqueue_embed.api.explained import explained
from pgqueue_embed.db.errors import first_line, is_away
from pgqueue_embed.errors import PgembedError, SetupError, UsageError
from pgqueue_embed.log import get_logger
from pgqueue_embed.worker import worker
from pgqueue_embed.worker.delays import reconnect_delay_seconds
from pgqueue_embed.worker.settings import WorkerSettings
from pgqueue_embed.worker.signals import handling
from pgqueue_embed.worker.stop_reasons import ANOTHER_MODEL, STALLED, STOPPED


class Worker:
    """Claims, embeds and commits on threads of this process, until stopped or, drained, done.

    One worker is enough for a device: `concurrency` is how many claims it has in work. Unlike
    ``pgembed work`` it has no supervisor: text that crashes the model's driver takes the process
    along. Without `run(handle_signals=True)` it leaves the process's signals alone.

    Example::

        with Worker(database, concurrency=4):
            serve_requests()  # embeds meanwhile; on leaving, the claim in hand is finished
    """

    @explained()
    def __init__(
        self,
        database: Database | None = None,
        *,
        pipelines: Sequence[str] = (),
        drain: bool = False,
        max_records: int | None = None,
        concurrency: int = WorkerSettings.concurrency,
        device: str = WorkerSettings.device,
        precision: str = WorkerSettings.precision,
        model_path: str | None = None,
        lease_seconds: float = WorkerSettings.lease_seconds,
        retry_delay_seconds: float = WorkerSettings.retry_delay_seconds,
        cache_megabytes: int = WorkerSettings.cache_megabytes,
        otlp: str | None = WorkerSettings.otlp,
    ) -> None:
        """Take the options of ``pgembed work``; `pipelines` are names, by default all.

        `cache_megabytes` is its ``--cache-size``, and `otlp` the URL of an OpenTelemetry collector
        that is told of each claim. With `drain` it ends when nothing is pending, else it works
        until stopped. Raises UsageError for a value out of range.
        """
        self._conninfo = (database or Database()).conninfo
        self._settings = WorkerSettings(
            pipelines=tuple(pipelines),
            drain=drain,
            max_records=max_records,
            concurrency=concurrency,
            device=device,
            precision=precision,
            model_path=model_path,
            lease_seconds=lease_seconds,
            retry_delay_seconds=retry_delay_seconds,
            cache_megabytes=cache_megabytes,
            otlp=otlp,
        )
        # Reentrant: a signal handler may interrupt the thread that holds it.
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._core: worker.Worker | None = None
        self._thread: threading.Thread | None = None
        self._ending = STOPPED
        self._failure: BaseException | None = None

    def start(self) -> Worker:
        """Begin to work in the background and return at once; a worker works once in its life.

        Example::

            worker = Worker(database).start()
        """
        with self._lock:
            if self._thread is not None:
                raise UsageError("this worker was started before; make another one")
            self._thread = threading.Thread(target=self._run, name="pgembed worker", daemon=True)
            self._thread.start()
        return self

    def stop(self, *, now: bool = False) -> None:
        """Ask for the end, from any thread: after the claim in hand or, `now`, giving it back.

        Returns at once; `wait` waits.

        Example::

            worker.stop()
        """
        with self._lock:
            self._stopping.set()
            if self._core is not None:
                self._core.stop()
                if now:
                    self._core.stop()

    def wait(self, timeout_seconds: float | None = None) -> str | None:
        """Return why the work ended: stopped, drained or max records reached.

        None if it goes on after `timeout_seconds`. Raises SetupError for a database, model or
        machine that is not ready for work.

        Example::

            assert Worker(database, drain=True).start().wait() == "drained"
        """
        if self._thread is None:
            raise UsageError("this worker was not started")
        if not self._ended.wait(timeout_seconds):
            return None
        if self._failure is not None:
            with explained():
                raise self._failure
        return self._ending

    def run(self, *, handle_signals: bool = False) -> str:
        """Work here until the end, and return why it ended.

        With `handle_signals` (main thread only), SIGINT and SIGTERM finish the claim in hand and
        end the work, and come again give it back; else a KeyboardInterrupt does so and goes on.

        Example::

            Worker(database, drain=True).run()
        """
        with self._signals() if handle_signals else nullcontext(), self:
            return self.wait() or STOPPED

    def __enter__(self) -> Worker:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if error is None:
            self.wait()
        else:
            self._ended.wait()

    def _run(self) -> None:
        try:
            self._ending = self._work()
        # Whatever it was, it belongs to whoever waits.
        except BaseException as error:  # noqa: BLE001
            self._failure = error
        finally:
            self._ended.set()

    def _work(self) -> str:
        """Work with one model after the other; once begun, outlive a database that goes away."""
        settings, has_worked, failures = self._settings, False, 0
        while (core := self._next_core(settings)) is not None:
            try:
                exit_ = core.run(on_stall=self._stall)
            except (PgembedError, psycopg.Error) as error:
                if not (has_worked and is_away(error)):
                    raise
                get_logger().warning("worker cannot start yet", reason=first_line(error))
                self._stopping.wait(reconnect_delay_seconds(failures, jitter=random.random()))
                failures += 1
                continue
            if exit_.reason != ANOTHER_MODEL:
                return exit_.reason
            settings = replace(
                settings, last_model=exit_.model, unserved=tuple(exit_.unserved.items())
            )
            has_worked, failures = True, 0
        return STOPPED

    def _next_core(self, settings: WorkerSettings) -> worker.Worker | None:
        with self._lock:
            if self._stopping.is_set():
                return None
            self._core = worker.Worker(self._conninfo, settings)
            return self._core

    def _stall(self) -> None:
        """Say that a driver call never returned: its thread cannot be ended, only the process."""
        self._failure = SetupError(f"{STALLED}: this process must be started again to embed")
        self._ended.set()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            raise UsageError("handle_signals works in the main thread only; call stop() instead")
        with handling({each: lambda *_: self.stop() for each in (signal.SIGINT, signal.SIGTERM)}):
            yield
