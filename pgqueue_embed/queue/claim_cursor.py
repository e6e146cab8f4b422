"""A hint where the claimable work items begin, which keeps claims quick.

While any session of the database holds an old snapshot, deleted items stay in the index, and a
claim that starts at the front reads all of them. Items are claimed in order, so a worker starts
where it claimed last, and from the front once in a while, for what others gave back. One that finds
nothing there, or is idle, begins a little before it, too: the items of transactions that were
committed late.
"""

from __future__ import annotations

import threading
import time

FRONT_SECONDS = 10.0

# Numbers are given when an item is queued, and not when that is committed. To read so many dead
# items takes less than a millisecond.
NEARBY_ITEMS = 5_000


class ClaimCursor:
    """The place in one pipeline's queue, by priority; shared by the loops of a process."""

    def __init__(self, front_seconds: float = FRONT_SECONDS) -> None:
        self._front_seconds = front_seconds
        self._lock = threading.Lock()
        self._after: dict[int, int] = {}
        self._front_is_due_at = 0.0
        self._poll_of_all_is_due_at = 0.0

    def start(self) -> dict[int, int]:
        """Return after which id to claim, by priority; nothing when it is time for the front."""
        with self._lock:
            now = time.monotonic()
            if now >= self._front_is_due_at:
                self._front_is_due_at = now + self._front_seconds
                return {}
            return dict(self._after)

    def nearby(self) -> dict[int, int]:
        """Return what `start` does, a little before it."""
        with self._lock:
            return self._nearby()

    def poll(self) -> dict[int, int]:
        """Return behind which id an idle worker polls, by priority; nothing if it is time for all.

        The claim that follows begins at the front then, too.
        """
        with self._lock:
            now = time.monotonic()
            if now < self._poll_of_all_is_due_at:
                return self._nearby()
            self._poll_of_all_is_due_at = now + self._front_seconds
            self._front_is_due_at = 0.0
            return {}

    def _nearby(self) -> dict[int, int]:
        return {priority: max(id_ - NEARBY_ITEMS, 0) for priority, id_ in self._after.items()}

    def advance(self, priority: int, work_ids: list[int]) -> None:
        """Start behind `work_ids` from now on, if there are any."""
        with self._lock:
            self._after[priority] = max(work_ids, default=self._after.get(priority, 0))
