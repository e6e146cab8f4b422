"""Compares the variant that a probe chose with its rivals on real batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding.working_clock import Clock

# Of real batches, each computed once more in both; the first one prepares them.
TURNS = 4
# The rival has to be so many times as fast: to change costs more than it may gain below that.
CLEARLY = 1.1
# Longer batches are not computed again, nor more of one than this: a claim waits, and its lease.
LONGEST_BATCH_SECONDS = 1.0
LONGEST_SECONDS = 0.2

# Computes chunks, padded to a length, and waits for them.
Run = Callable[[Sequence[Chunk], int | None], object]


class Contest:
    """Times real batches in two variants, and gives their vectors away.

    ``own`` and ``rival`` compute in the one in use and in the other.
    """

    def __init__(self, own: Run, rival: Run) -> None:
        self._own = own
        self._rival = rival
        self._turns: list[tuple[float, float]] = []
        self._rows = 1

    def take_turn(self, chunks: Sequence[Chunk], length: int | None, clock: Clock) -> bool | None:
        """Time a batch in both; returns whether the rival is faster, None as long as it is open."""
        if self._turns:
            slower = max(1e-9, *self._turns[-1])
            self._rows = max(1, int(self._rows * LONGEST_SECONDS / slower))
        chunks = chunks[: self._rows]
        self._rows = len(chunks)
        times = [clock()]
        for run in (self._own, self._rival):
            run(chunks, length)
            times.append(clock())
        self._turns.append((times[1] - times[0], times[2] - times[1]))
        return None if len(self._turns) < TURNS else is_faster(self._turns)


def is_faster(turns: Sequence[tuple[float, float]]) -> bool:
    """Return whether the second seconds of each turn are clearly fewer, the first turn left out."""
    return median(own / max(rival, 1e-9) for own, rival in turns[1:]) >= CLEARLY
