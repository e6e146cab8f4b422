"""Pipelines that a worker process cannot serve, though others may, with the reason.

A right that its role lacks, a model that its machine lacks. Such pipelines are left out for a
while, and tried again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

# How soon a right that was granted meanwhile is noticed.
RECHECK_SECONDS = 30.0

# Whether another model would do is checked so often: its files are read for that, or all of it.
MODEL_RECHECK_SECONDS = 600.0


class Unserved:
    """The pipelines that are left out; for several threads at once.

    Those that `known` has, each with its reason, are of other models.
    """

    def __init__(self, known: Iterable[tuple[int, str]] = ()) -> None:
        self._lock = threading.Lock()
        self._reasons: dict[int, str] = {}
        self._until: dict[int, float] = {}
        for pipeline_id, reason in known:
            self.add(pipeline_id, reason, seconds=MODEL_RECHECK_SECONDS)

    def add(self, pipeline_id: int, reason: str, *, seconds: float | None = None) -> None:
        """Leave a pipeline out for `seconds`, by default RECHECK_SECONDS."""
        with self._lock:
            self._reasons[pipeline_id] = reason
            self._until[pipeline_id] = time.monotonic() + (seconds or RECHECK_SECONDS)

    def remove(self, pipeline_id: int) -> None:
        """Say that a pipeline can be served."""
        with self._lock:
            self._reasons.pop(pipeline_id, None)
            self._until.pop(pipeline_id, None)

    def holds(self, pipeline_id: int) -> bool:
        """Return whether a pipeline is left out now, and not yet to be tried again."""
        with self._lock:
            return time.monotonic() < self._until.get(pipeline_id, 0.0)

    def due(self) -> list[int]:
        """Return the pipelines that are to be tried again."""
        with self._lock:
            now = time.monotonic()
            return [each for each, until in self._until.items() if until <= now]

    def reasons(self) -> dict[int, str]:
        """Return why, by the id of each pipeline that could not be served when last tried."""
        with self._lock:
            return dict(self._reasons)
