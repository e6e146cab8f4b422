"""Plan batches: lengths in, rows and lengths out.

Metal compiles and keeps a graph for every input shape and never gives it back, so that shapes
must be few on a GPU: lengths are rounded up, and a length has one number of rows, or a quarter or
a sixteenth of it for what is left over. A CPU keeps nothing and pays for every token of padding,
so that there a batch is as long as its longest sequence, and ends where another one costs less than
more padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

_FINE_STEPS = 8  # lengths up to this many steps are told apart by one step, then coarser
_GRAINS = 64  # a batch of the longest sequences may end at so many places


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """How large batches may be, in tokens, padding included.

    Not in rows: short sequences keep a device busy only if there are more of them.
    Lengths are multiples of ``length_step``. ``fill`` repeats rows of a call to reach a full
    shape; without it the last batch is smaller. ``batch_tokens`` is what one more batch costs, in
    tokens; None where all batches but the last are to be full. ``sizes_to_try`` are the tokens of
    batches of which real claims have still to tell the fastest.
    """

    max_tokens_per_batch: int
    length_step: int
    fill: bool
    batch_tokens: int | None = None
    sizes_to_try: tuple[int, ...] = ()

    def halved(self, rows: int, length: int) -> BatchLimits:
        """Return limits that allow half the rows at a length, after these were too many.

        Never more than these do: a batch that was planned before they shrank may fail after that.
        """
        return self.resized(min(self.max_tokens_per_batch, max(1, rows // 2) * length))

    def resized(self, max_tokens_per_batch: int) -> BatchLimits:
        """Return limits of another size."""
        return replace(self, max_tokens_per_batch=max_tokens_per_batch)

    def settled(self, max_tokens_per_batch: int) -> BatchLimits:
        """Return limits of another size, with none left to try."""
        return replace(self, max_tokens_per_batch=max_tokens_per_batch, sizes_to_try=())

    def rows_at(self, length: int) -> int:
        """Return the number of rows of a full batch of sequences of ``length`` tokens."""
        rows = max(1, self.max_tokens_per_batch // length)
        return rows - rows % 8 if self.fill and rows >= 8 else rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """``rows`` are positions in the planned sequence, repeated where the batch is filled up."""

    rows: tuple[int, ...]
    length: int

    @property
    def tokens(self) -> int:
        """What the device computes, padding included."""
        return len(self.rows) * self.length


# Tokens of a batch, each twice the one before: a device's rate is flat around its best size.
SIZES_OF = {
    "cpu": (512, 1_024, 2_048),
    "mps": (4_096, 8_192, 16_384, 32_768),
    "cuda": (16_384, 32_768, 65_536, 131_072),
}
SIZES = frozenset(size for sizes in SIZES_OF.values() for size in sizes)

# What real claims begin with. Rates are flat on Apple GPUs from about 64 rows of 130 tokens; on
# a CPU the activations of more than some 2,000 tokens fall out of its caches, one of MiniLM's
# batches takes as long as its tokens and some 60 more, and one of a large model's many seconds.
_LIMITS = {
    "mps": BatchLimits(max_tokens_per_batch=16_384, length_step=16, fill=True),
    "cuda": BatchLimits(max_tokens_per_batch=65_536, length_step=1, fill=False, batch_tokens=4_000),
    "cpu": BatchLimits(max_tokens_per_batch=512, length_step=1, fill=False, batch_tokens=60),
}

# A table look-up costs next to nothing for a token, and its call as much as some hundred chunks.
TABLE_LOOK_UP = BatchLimits(max_tokens_per_batch=1 << 17, length_step=1, fill=False)


def limits_for(kind: str) -> BatchLimits:
    """Return the limits of a network on ``mps``, ``cuda`` or ``cpu`` that nothing is known of."""
    return _LIMITS[kind]


def plan_batches(
    lengths: Sequence[int], limits: BatchLimits, *, longest: int | None = None
) -> list[Batch]:
    """Group sequences, given by their lengths in tokens, into batches; longest first.

    Rounding up stops at ``longest``, the longest sequence ever met, so that full chunks need no
    padding.
    """
    order = np.argsort(-np.array(lengths, np.int64), kind="stable").tolist()
    if limits.batch_tokens is not None and order:
        return _cheapest(order, lengths, limits, limits.batch_tokens)
    cap = max([longest or 0, *lengths]) if order else 0
    batches: list[Batch] = []
    done = 0
    while done < len(order):
        length = min(cap, bucket(lengths[order[done]], limits.length_step))
        full = limits.rows_at(length)
        rows = order[done : done + full]
        done += len(rows)
        if limits.fill:
            rows = _filled(rows, full)
        batches.append(Batch(rows=tuple(rows), length=length))
    return batches


def _cheapest(
    order: Sequence[int], lengths: Sequence[int], limits: BatchLimits, batch_tokens: int
) -> list[Batch]:
    """Part ``order``, longest first, where tokens, padding and batches cost least in all.

    Of large batches not at each row: where one ends a few rows later costs next to nothing.
    """
    grain = max(1, limits.rows_at(lengths[order[0]]) // _GRAINS)
    longest = np.array([lengths[row] for row in order[::grain]], np.int64)
    begins = _begins(longest, limits.max_tokens_per_batch // grain, batch_tokens // grain)
    batches: list[Batch] = []
    end = len(longest)
    while end:
        begin = int(begins[end])
        rows = tuple(order[begin * grain : end * grain])
        batches.append(Batch(rows=rows, length=int(longest[begin])))
        end = begin
    return batches[::-1]


def _begins(longest: NDArray[np.int64], max_tokens: int, batch_tokens: int) -> NDArray[np.int64]:
    """Return where the last batch begins of the cheapest that end before each row.

    ``longest`` are the lengths of the rows, descending; by dynamic programming, a row at a time.
    """
    cost = np.zeros(len(longest) + 1, np.int64)
    begins = np.zeros(len(longest) + 1, np.int64)
    counts = np.arange(len(longest), 0, -1)
    lengths = longest.tolist()
    lowest = 0
    for end in range(1, len(lengths) + 1):
        while lowest < end - 1 and (end - lowest) * lengths[lowest] > max_tokens:
            lowest += 1
        costs = cost[lowest:end] + counts[lowest - end :] * longest[lowest:end]
        best = costs.argmin()
        begins[end] = lowest + best
        cost[end] = costs[best] + batch_tokens
    return begins


def bucket(length: int, step: int) -> int:
    """Round a length up to a multiple of ``step``, which doubles with long lengths; 1 stays 1."""
    while step > 1 and length > step * _FINE_STEPS:
        step *= 2
    return -(-max(1, length) // step) * step


def _filled(rows: list[int], full: int) -> list[int]:
    sizes = (max(1, full // 16), max(1, full // 4), full)
    size = next(size for size in sizes if size >= len(rows))
    return [rows[n % len(rows)] for n in range(size)]
