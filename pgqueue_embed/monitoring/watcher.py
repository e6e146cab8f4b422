"""Takes a snapshot every few seconds in a thread of its own, for as long as anyone looks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

import psycopg

from pgqueue_embed.db import applications
from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.session import BOOKKEEPING_SECONDS, connect
from pgqueue_embed.errors import PgembedError
from pgqueue_embed.monitoring.snapshot import Snapshot, read_snapshot

# Ten people who look must cost the server less than one worker does.
MOST_SHARE = 0.1


class Watcher:
    """Keeps `latest`, the snapshot of pipeline `name`, or of all, at most some `seconds` old.

    While it cannot be read, `trouble` says why and `latest` stays as it is. Whoever draws it never
    waits for the database. `on_look` is called after each look, in the watcher's thread; `looks`
    counts them.
    """

    def __init__(
        self,
        conninfo: str,
        name: str | None = None,
        *,
        seconds: float,
        on_look: Callable[[], None] = lambda: None,
    ) -> None:
        self.latest: Snapshot | None = None
        self.looks = 0
        self.trouble: str | None = None
        self._conninfo = conninfo
        self._name = name
        self._seconds = seconds
        self._on_look = on_look
        self._done = threading.Event()
        self._wanted = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self._thread.join(timeout=0.2)

    def stop(self) -> None:
        """Have it end, after the look that it takes, without waiting for that."""
        self._done.set()
        self._wanted.set()

    def look_now(self) -> None:
        """Have the next snapshot taken at once: something was changed."""
        self._wanted.set()

    def _run(self) -> None:
        while not self._done.is_set():
            try:
                with connect(
                    self._conninfo,
                    application_name=applications.PROGRESS,
                    patience_seconds=BOOKKEEPING_SECONDS,
                ) as connection:
                    while not self._done.is_set():
                        started = time.monotonic()
                        self.latest = read_snapshot(connection, self._name)
                        self.trouble = None
                        self._tell()
                        self._pause((time.monotonic() - started) / MOST_SHARE)
            except (PgembedError, psycopg.Error) as error:
                self.trouble = first_line(error)
                self._tell()
                self._pause(self._seconds)

    def _tell(self) -> None:
        self.looks += 1
        self._on_look()

    def _pause(self, seconds: float) -> None:
        self._wanted.wait(max(self._seconds, seconds))
        self._wanted.clear()
