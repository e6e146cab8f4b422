"""Sizes the next claim in seconds, by what the one before it did."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pgqueue_embed.queue.item_size import MAX_ITEM_RECORDS

MAX_CLAIM_ITEMS = 16
MAX_CLAIM_RECORDS = MAX_CLAIM_ITEMS * MAX_ITEM_RECORDS


@dataclass(frozen=True, kw_only=True)
class ClaimSize:
    """How much one claim takes: so many work items, of whose text no more than so many bytes.

    The items are the measure; the bytes cut off what is far longer than what came before. The
    records are a limit only after a claim that ran out of time.
    """

    items: int
    limit_bytes: int
    records: int = MAX_CLAIM_RECORDS

    @property
    def share(self) -> float:
        """How much of the records that a claim may have it takes, between 0 and 1."""
        return self.records / MAX_CLAIM_RECORDS


# The first claim, before anything is measured: a second or two on a slow CPU.
FIRST_CLAIM = ClaimSize(items=1, limit_bytes=64 * 1024)
MAX_CLAIM_BYTES = 16 * 1024 * 1024

# Items differ in length. A claim that is cut puts the rest of an item back, to be read once more.
SPARE_BYTES = 2.0


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What a claim did: bytes of text, work items and the seconds it took.

    `own_seconds` are those without the time in which it waited for others at the device.
    """

    items: int
    text_bytes: int
    own_seconds: float
    seconds: float


def next_claim_size(last: ClaimSize, rate: Rate, *, target_seconds: float) -> ClaimSize:
    """Return the size that should make the next claim take `target_seconds` of its own.

    Or fewer, so that with its wait for the device it lasts no more than twice that: it is a
    transaction. Grows at most fourfold at a step, so that one quick claim does not make a huge one.
    """
    took_seconds = max(rate.own_seconds, rate.seconds / 2, 0.001)
    factor = min(max(target_seconds / took_seconds, 0.25), 4.0)
    items = min(max(math.ceil(rate.items * factor), 1), MAX_CLAIM_ITEMS, last.items * 4)
    wanted_bytes = int(max(rate.text_bytes, 4096) * factor * SPARE_BYTES)
    limit_bytes = min(max(wanted_bytes, 32 * 1024), MAX_CLAIM_BYTES)
    records = min(math.ceil(last.records * factor), MAX_CLAIM_RECORDS)
    if last.records == MAX_CLAIM_RECORDS:
        records = MAX_CLAIM_RECORDS
    return ClaimSize(items=items, limit_bytes=limit_bytes, records=records)


def smaller_claim(size: ClaimSize) -> ClaimSize:
    """Return the size of the next claim after one that ran out of time: a quarter, or one record.

    In records too, since an item is claimed as one.
    """
    most = min(size.records, size.items * MAX_ITEM_RECORDS)
    return ClaimSize(
        items=max(size.items // 4, 1),
        limit_bytes=max(size.limit_bytes // 4, 1),
        records=max(most // 4, 1),
    )


def recovered_claim(size: ClaimSize) -> ClaimSize:
    """Return the size of the next claim after one that was in time, and tells no rate."""
    return replace(size, records=min(size.records * 4, MAX_CLAIM_RECORDS))
