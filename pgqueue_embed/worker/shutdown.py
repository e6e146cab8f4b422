"""The end of a worker: asks its loops to leave, at once or after a claim, and says why."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import PgembedError


class Abandoned(PgembedError):
    """The claim in hand is given up because the worker must leave at once."""


class Shutdown:
    """Asked for once, the loops finish the claim in hand; twice, they give it back.

    `reason` is the first that was given, None as long as there is none or a person has asked, and
    `failure` the error that made the work end. For several threads at once.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.at_once = threading.Event()
        self.reason: str | None = None
        self.failure: PgembedError | None = None
        self._lock = threading.Lock()
        self._sides: set[Connection] = set()

    def ask(self) -> None:
        """Ask the loops to leave after the claim in hand; asked again: at once, without it."""
        if self.asked.is_set():
            self.at_once.set()
        self.asked.set()

    def finish(self, reason: str, failure: PgembedError | None = None) -> None:
        """Ask the loops to leave after the claim in hand, for `reason`, unless there is one."""
        with self._lock:
            if self.reason is None:
                self.reason, self.failure = reason, failure
        self.asked.set()

    def checkpoint(self) -> None:
        """Raise Abandoned once the worker must leave at once."""
        if self.at_once.is_set():
            raise Abandoned("left at once; the claim in hand was rolled back")

    @contextmanager
    def interruptible(self, side: Connection) -> Iterator[None]:
        """Let `interrupt` cancel what is read on `side` while the block runs."""
        self._sides.add(side)
        try:
            yield
        finally:
            self._sides.discard(side)

    def interrupt(self) -> None:
        """Cancel what the loops read: behind a user's lock they would not see a checkpoint."""
        for side in list(self._sides):
            side.request_cancel()
