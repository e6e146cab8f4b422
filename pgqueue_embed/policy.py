"""Pure policy: numbers in, numbers out. Callers query and sleep."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

MAX_ITEM_RECORDS = 256

# A queue of fewer items than this could not be shared evenly by a handful of workers.
WANTED_ITEMS = 64


def records_per_item(estimated_records: int) -> int:
    """Return how many keys a work item holds: fewer where a small source is to be shared."""
    return max(8, min(MAX_ITEM_RECORDS, estimated_records // WANTED_ITEMS))


def retry_delay_seconds(attempts: int, *, base_seconds: float, jitter: float) -> float:
    """Return the wait before a record's next attempt, after `attempts` failed ones.

    Doubles from `base_seconds` up to an hour; `jitter` in [0, 1) spreads it over ±25 %.
    """
    delay = min(base_seconds * float(2 ** min(attempts - 1, 20)), 3600.0)
    return delay * (0.75 + 0.5 * jitter)


def poll_delay_seconds(idle_polls: int, *, jitter: float) -> float:
    """Return the wait of an idle worker: 1 s growing to 2 s, ±25 % by `jitter` in [0, 1).

    So a change waits for 2.5 s at most, and its vector is there within 3 s of its commit. A poll is
    two statements, less than a millisecond of the server: a hundred idle loops take some 5 % of one
    of its cores.
    """
    return min(1.0 * 1.5 ** min(idle_polls, 8), 2.0) * (0.75 + 0.5 * jitter)


def reconnect_delay_seconds(failures: int, *, jitter: float) -> float:
    """Return the wait before reconnecting: 0.5 s doubling to 30 s, spread by `jitter` in [0, 1)."""
    return min(0.5 * float(2 ** min(failures, 10)), 30.0) * (0.75 + 0.5 * jitter)


def restart_delay_seconds(crashes_in_a_row: int) -> float:
    """Return the wait before a crashed worker process is started again: 0.5 s doubling to 60 s."""
    return min(0.5 * float(2 ** min(crashes_in_a_row - 1, 10)), 60.0)


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


SPLIT_PARTS = 16
FATAL_DEATHS = 3


def split_size(records: int) -> int:
    """Return how many records each part holds when a suspect item is split into up to 16."""
    return math.ceil(records / SPLIT_PARTS)
