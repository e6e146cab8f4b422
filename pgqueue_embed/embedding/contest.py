"""Whether the variant that a probe chose is the faster one on real batches, too."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

from pgqueue_embed.chunking import Chunk

# Of real batches, each computed once more in both; the first one prepares them.
TURNS = 4
# The rival has to be so many times as fast: to change costs more than it may gain below that.
CLEARLY = 1.1
# A part of a batch is enough, of a large model a small one: a claim waits for it, and its lease.
PART = 4
LONGEST_SECONDS = 0.5

# Computes chunks, padded to a length, and waits for them.
Run = Callable[[Sequence[Chunk], int | None], object]


class Contest:
    """Times real batches in two variants, and gives their vectors away.

    ``own`` and ``rival`` compute in the one in use and in the other.
    """

    def __init__(
        self, own: Run, rival: Run, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._own = own
        self._rival = rival
        self._clock = clock
        self._turns: list[tuple[float, float]] = []

    def take_turn(self, chunks: Sequence[Chunk], length: int | None) -> bool | None:
        """Time a batch in both; returns whether the rival is faster, None as long as it is open."""
        part = float(PART)
        if self._turns:
            part *= max(1.0, max(self._turns[-1]) / LONGEST_SECONDS)
        chunks = chunks[: max(1, int(len(chunks) / part))]
        self._turns.append(
            (self._time(self._own, chunks, length), self._time(self._rival, chunks, length))
        )
        return None if len(self._turns) < TURNS else is_faster(self._turns)

    def _time(self, run: Run, chunks: Sequence[Chunk], length: int | None) -> float:
        started = self._clock()
        run(chunks, length)
        return self._clock() - started


def is_faster(turns: Sequence[tuple[float, float]]) -> bool:
    """Return whether the second seconds of each turn are clearly fewer, the first turn left out."""
    return median(own / max(rival, 1e-9) for own, rival in turns[1:]) >= CLEARLY
