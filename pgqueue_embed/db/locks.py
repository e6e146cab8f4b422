"""Strong locks on tables that others use: waited for shortly and often, never in everybody's way.

Whoever waits for such a lock has all later users of the table queue up behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psycopg

from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError

# Advisory locks, numbers that no other program uses: of a migration, of a file that is applied,
# and, plus a pipeline's id, of an index that is built, and of claims, which share theirs. Those of
# capture are made in SQL.
MIGRATION_LOCK = 7_034_212_890
APPLY_LOCK = 7_034_212_891
INDEX_LOCK = 7_034_213_000_000
CLAIM_LOCK = 7_034_214_000_000

LOCK_SECONDS = 1.0
TRIES = 10
PAUSE_SECONDS = 1.0

Result = TypeVar("Result")


def in_short_waits(
    connection: Connection, change: Callable[[], Result], *, table: object
) -> Result:
    """Return `change()`, run in a transaction that waits at most LOCK_SECONDS for a lock.

    It is tried again where it has waited in vain. Raises UsageError when `table`, which it locks,
    is never free.
    """
    for _ in range(TRIES - 1):
        try:
            return _attempt(connection, change)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            time.sleep(PAUSE_SECONDS)
    try:
        return _attempt(connection, change)
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
        raise UsageError(
            f"{table} is used without a pause ({first_line(error)}); end the transaction that holds"
            " it, and try again"
        ) from None


def _attempt(connection: Connection, change: Callable[[], Result]) -> Result:
    with connection.transaction():
        set_lock_timeout(connection, LOCK_SECONDS)
        return change()


def set_lock_timeout(connection: Connection, seconds: float) -> None:
    """Let the open transaction wait so long for any one lock."""
    connection.execute(f"set local lock_timeout = {int(seconds * 1000)}")
