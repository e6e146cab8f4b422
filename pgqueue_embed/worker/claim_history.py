"""Lessons from the claims of one worker process, by pipeline: sizes, cursors, late items."""

from __future__ import annotations

import threading
import time

from pgqueue_embed.claim.process import ClaimOutcome
from pgqueue_embed.claim.size import (
    FIRST_CLAIM,
    ClaimSize,
    next_claim_size,
    recovered_claim,
    smaller_claim,
)
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.claim_cursor import ClaimCursor
from pgqueue_embed.worker.registry import WorkerReport


class ClaimHistory:
    """Sizes of the next claims, cursors into the queue, and what was done; for several threads.

    A claim should take `target_seconds`. `late` are the ids of work items that ran out of time
    here once.
    """

    def __init__(self, *, target_seconds: float) -> None:
        self.records_done = 0
        self.fp32_chunks = 0
        self._leases_lost = 0
        self._last_error: str | None = None
        self._committed_at: float | None = None
        self._erred_at: float | None = None
        self.late: set[int] = set()
        self._target_seconds = target_seconds
        self._lock = threading.Lock()
        self._sizes: dict[int, ClaimSize] = {}
        self._cursors: dict[int, ClaimCursor] = {}

    def size(self, pipeline: Pipeline) -> ClaimSize:
        """Return how much the next claim of `pipeline` takes."""
        return self._sizes.get(pipeline.id, FIRST_CLAIM)

    def cursor(self, pipeline: Pipeline) -> ClaimCursor:
        """Return where the loops have got to in the queue of `pipeline`."""
        with self._lock:
            return self._cursors.setdefault(pipeline.id, ClaimCursor())

    def finished(self, pipeline: Pipeline, done: ClaimOutcome, size: ClaimSize | None) -> None:
        """Count a finished claim, and learn from its `size` how large the next one should be.

        None for one that ran alone, which tells nothing of others.
        """
        with self._lock:
            self.records_done += done.commit.records
            self._committed_at = time.monotonic()
            self.fp32_chunks += done.commit.fp32_chunks
            if size is not None:
                self._sizes[pipeline.id] = self._next_size(size, done)

    def gave_back(self, reason: str) -> None:
        """Note that a claim was not committed, and why."""
        with self._lock:
            self._last_error, self._erred_at = reason, time.monotonic()

    def ran_out_of_time(self, pipeline: Pipeline, size: ClaimSize | None) -> None:
        """Make the next claim smaller than one of `size`, which is as in `finished`."""
        with self._lock:
            self._leases_lost += 1
            if size is not None:
                self._sizes[pipeline.id] = smaller_claim(size)

    def report(self) -> WorkerReport:
        """Return what was done so far."""
        with self._lock:
            return WorkerReport(
                records=self.records_done,
                fp32_chunks=self.fp32_chunks,
                leases_lost=self._leases_lost,
                commit_seconds_ago=_seconds_since(self._committed_at),
                last_error=self._last_error,
                error_seconds_ago=_seconds_since(self._erred_at),
            )

    def _next_size(self, size: ClaimSize, done: ClaimOutcome) -> ClaimSize:
        if done.rate is None or not done.commit.chunks:
            return recovered_claim(size)
        return next_claim_size(size, done.rate, target_seconds=self._target_seconds)


def _seconds_since(moment: float | None) -> float | None:
    return None if moment is None else time.monotonic() - moment
