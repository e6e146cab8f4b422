"""Delay before the next try of a record that failed."""

from __future__ import annotations


def retry_delay_seconds(attempts: int, *, base_seconds: float, jitter: float) -> float:
    """Return the wait before a record's next attempt, after `attempts` failed ones.

    Doubles from `base_seconds` up to an hour; `jitter` in [0, 1) spreads it over ±25 %.
    """
    delay = min(base_seconds * float(2 ** min(attempts - 1, 20)), 3600.0)
    return delay * (0.75 + 0.5 * jitter)
