"""The lease of a claim: how long it goes without progress, what renews it, and what its loss does.

The server ends the session of a claim that makes no progress, and with it the transaction: nothing
of it is written, and its items are free for others at once. Here that is LeaseLost. The worker says
"claim given back" and goes on over another session (worker/loop.py); an item to which it happens
twice becomes a suspect (claim/lateness.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.session import Connection, OutOfTime
from pgqueue_embed.errors import DatabaseUnavailable, LeaseExpired, LeaseLost


@contextmanager
def claim_transaction(connection: Connection, *, lease_seconds: float) -> Iterator[None]:
    """Open the transaction of a claim, which the server ends after `lease_seconds` of silence.

    It is READ COMMITTED, as all of ours are: else the re-check before the write would see the
    snapshot of the claim. SET LOCAL only, so that pgbouncer in transaction mode works. Raises
    LeaseLost when the connection is gone.
    """
    connection.patience_seconds = lease_seconds
    try:
        with connection.transaction():
            connection.execute(_opening(lease_seconds))
            yield
    # The server's timeouts arrive as InternalError, a cut line as OperationalError.
    except (psycopg.Error, DatabaseUnavailable) as error:
        if isinstance(error, OutOfTime) or not connection.closed:
            raise
        raise LeaseLost(f"the claim's connection was lost: {first_line(error)}") from None


def _opening(lease_seconds: float) -> sql.Composed:
    # The keepalives are the server's: it notices a machine that went to sleep in mid-statement.
    return sql.SQL(
        """
        set local idle_in_transaction_session_timeout = {lease};
        set local statement_timeout = {lease};
        set local tcp_keepalives_idle = 15;
        set local tcp_keepalives_interval = 5;
        set local tcp_keepalives_count = 3
        """
    ).format(lease=int(lease_seconds * 1000))


def renew(connection: Connection) -> None:
    """Say that the claim goes on; raises LeaseLost, LeaseExpired after a lease of silence."""
    silent_seconds, lease_seconds = connection.silent_seconds, connection.patience_seconds or 0.0
    try:
        connection.execute("select 1")
    except psycopg.Error as error:
        lost = f"the server took the claim back: {first_line(error)}"
        if silent_seconds < lease_seconds:
            raise LeaseLost(lost) from None
        raise LeaseExpired(f"{lost}; no progress in {lease_seconds:g} s (--lease)") from None
