"""Delays of a worker: idle, without its database, and after a crash."""

from __future__ import annotations


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
