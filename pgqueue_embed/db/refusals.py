"""Finds the records that a table refuses, by halving a change of many down to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import psycopg

from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.faults import fault, is_of_the_table, is_of_users
from pgqueue_embed.db.halves import by_halves
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import RecordFault

# The last is a row that a user moves to another partition while we wait for it.
WAITS_FOR_OTHERS = (
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
)

# A constraint that is deferred speaks here, where a record can still be told from the others, and
# not at COMMIT. What follows is deferred again: a chunk is deleted before it is inserted anew.
CHECK_DEFERRED = "set constraints all immediate; set constraints all deferred"


def refusals(
    connection: Connection,
    doing: str,
    keys: Sequence[str],
    change: Callable[[Sequence[str]], dict[str, str]],
) -> dict[str, str]:
    """Make a change of a table for the records `keys`; returns the error of each that it refuses.

    A refusal (a CHECK of the user's, an error of a trigger) is narrowed down by halves, each in its
    own savepoint; `change` may report some too. `doing` says what is done, as in faults. Raises
    PipelineFault for what the table would say to any record, and whatever is no record's fault.
    """
    refused: dict[str, str] = {}

    def attempt(some: Sequence[str]) -> None:
        with connection.transaction():
            reported = change(some)
            connection.execute(CHECK_DEFERRED)
        refused.update(reported)

    def refuse(key: str, reason: str) -> None:
        refused[key] = f"the target table refused it: {reason}"

    by_halves(keys, attempt, refuse, reason=partial(_reason, connection, doing))
    return refused


def _reason(connection: Connection, doing: str, error: Exception) -> str:
    """Return what the table says of its records; raises if it is not about them."""
    if isinstance(error, RecordFault):
        return str(error)
    if not isinstance(error, psycopg.Error):
        raise error
    if connection.closed or isinstance(error, WAITS_FOR_OTHERS) or not is_of_users(error):
        raise error
    if is_of_the_table(error):
        raise fault(connection, error, doing) from None
    return first_line(error)
