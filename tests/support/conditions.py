"""Waiting for conditions, so that no test sleeps and hopes."""

from __future__ import annotations

import time
from collections.abc import Callable

from pgqueue_embed.db.session import Connection
from tests.support.rows import one_value

PATIENCE_SECONDS = 30.0


def wait_until(
    condition: Callable[[], object], what: str, *, seconds: float = PATIENCE_SECONDS
) -> None:
    """Return once `condition()` is true; fails the test after `seconds`."""
    started = time.monotonic()
    deadline = started + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain: {what}"
        # A look costs more than a wait; but what is true for a moment only has to be seen, too.
        time.sleep(min(0.1, max(0.01, 0.1 * (time.monotonic() - started))))


def is_blocked(observer: Connection, pid: int) -> bool:
    """Return whether the back end `pid` waits for a lock that another one holds."""
    return one_value(observer, "select cardinality(pg_blocking_pids(%s)) > 0", (pid,))


def wait_until_blocked(observer: Connection, pid: int) -> None:
    """Return once the back end `pid` waits for a lock that another one holds."""
    wait_until(lambda: is_blocked(observer, pid), f"back end {pid} waits for a lock")


def wait_until_gone(observer: Connection, pid: int) -> None:
    """Return once the back end `pid` has ended."""
    query = "select not exists (select 1 from pg_stat_activity where pid = %s)"
    wait_until(lambda: one_value(observer, query, (pid,)), f"back end {pid} ends")


def terminate(observer: Connection, pid: int) -> None:
    """End the back end `pid`, as a crash of its client or a failover would, and wait for it."""
    observer.execute("select pg_terminate_backend(%s)", (pid,))
    wait_until_gone(observer, pid)
