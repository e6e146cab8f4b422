"""The heartbeat thread: reports that a worker process is alive, and cleans up in between."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType

import psutil
import psycopg

from pgqueue_embed.db import applications
from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.session import BOOKKEEPING_SECONDS, Connection, connect
from pgqueue_embed.embedding.devices import device_memory_bytes
from pgqueue_embed.errors import DatabaseUnavailable, PgembedError
from pgqueue_embed.ledger.commits import roll_up
from pgqueue_embed.log import get_logger
from pgqueue_embed.queue import housekeeping
from pgqueue_embed.worker import registry
from pgqueue_embed.worker.loop import Shared
from pgqueue_embed.worker.stop_reasons import FAILED, RECYCLED, STALLED

HEARTBEAT_SECONDS = 10.0
HOUSEKEEPING_SECONDS = 60.0

# After one lease without progress the server has taken the claims back; another one, and the
# device is taken to hang.
STALL_LEASES = 2.0


class Heartbeat:
    """A background thread with its own connection; no correctness depends on it.

    `on_stall` ends the process once `stalled_seconds` says that the device hangs.
    """

    def __init__(
        self,
        shared: Shared,
        identity: Callable[[], registry.WorkerIdentity],
        stalled_seconds: Callable[[], float],
        on_stall: Callable[[], None],
    ) -> None:
        self._shared = shared
        self._identity = identity
        self._stalled_seconds = stalled_seconds
        self._on_stall = on_stall
        self._done = threading.Event()
        self._next_housekeeping = time.monotonic() + HOUSEKEEPING_SECONDS
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._done.is_set():
            try:
                with connect(
                    self._shared.conninfo,
                    application_name=applications.HEARTBEAT,
                    patience_seconds=BOOKKEEPING_SECONDS,
                ) as own:
                    self._beat(own)
            except (DatabaseUnavailable, psycopg.Error) as error:
                get_logger().debug("heartbeat missed", reason=first_line(error))
                self._done.wait(HEARTBEAT_SECONDS)
            except PgembedError as error:
                self._shared.shutdown.finish(FAILED, error)
                return

    def _beat(self, connection: Connection) -> None:
        while True:
            identity = self._identity()
            memory_bytes = process_memory_bytes(identity.device)
            pipelines = self._shared.served.pipelines()
            known = registry.heartbeat(
                connection,
                self._shared.worker_id,
                state="stopping" if self._shared.shutdown.asked.is_set() else "working",
                identity=identity,
                memory_bytes=memory_bytes,
                pipeline_ids=[pipeline.id for pipeline in pipelines],
                unserved=self._shared.served.unserved.reasons(),
            )
            if not known:
                registry.register_again(connection, self._shared.worker_id, identity)
            registry.report_work(connection, self._shared.worker_id, self._shared.history.report())
            self._recycle_if_large(memory_bytes)
            self._end_if_stalled(connection)
            if time.monotonic() >= self._next_housekeeping:
                self._next_housekeeping = time.monotonic() + HOUSEKEEPING_SECONDS
                housekeeping.clean_up(connection)
                for pipeline in pipelines:
                    roll_up(connection, pipeline.id)
            if self._done.wait(HEARTBEAT_SECONDS):
                return

    def _end_if_stalled(self, connection: Connection) -> None:
        """End the process if the device hangs: its loops wait for it and cannot be woken."""
        stalled_seconds = self._stalled_seconds()
        if stalled_seconds > STALL_LEASES * self._shared.settings.lease_seconds:
            get_logger().error("device stalled", seconds=round(stalled_seconds))
            registry.sign_off(connection, self._shared.worker_id, STALLED)
            self._on_stall()

    def _recycle_if_large(self, memory_bytes: int) -> None:
        limit = self._shared.settings.memory_limit_megabytes
        if limit is not None and memory_bytes > limit * 1024 * 1024:
            get_logger().warning("memory limit passed", megabytes=memory_bytes // 1024**2)
            self._shared.shutdown.finish(RECYCLED)


def process_memory_bytes(device: str) -> int:
    """Return the memory of this process, that on the device included (resident size hides it)."""
    resident = int(psutil.Process(os.getpid()).memory_info().rss)
    return resident + device_memory_bytes(device)
