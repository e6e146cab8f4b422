"""Errors of PostgreSQL: what they mean for the work, and their first line."""

from __future__ import annotations

import psycopg

from pgqueue_embed.errors import DatabaseUnavailable
from pgqueue_embed.untrusted.foreign_text import MOST_CHARACTERS, printable

# SQLSTATE of a database that is away for a while: no connection, no room (or no free connection),
# shutting down, a standby since a failover, a session that a timeout has ended.
AWAY = ("08", "53", "57P", "25006", "25P03", "25P04")


def is_away(error: BaseException) -> bool:
    """Return whether the database is away for a while, and no statement is to blame.

    The allowed classes are few: whatever else a server that answers says is about the statement.
    """
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        return error.sqlstate.startswith(AWAY)
    return isinstance(error, (DatabaseUnavailable, psycopg.OperationalError))


def first_line(error: BaseException) -> str:
    """Return the part of a database error that a person needs, on one printable line.

    What the server repeats of a value is cut to MOST_CHARACTERS.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    failures = [line for line in lines if "failed:" in line]
    text = (failures or lines or [type(error).__name__])[-1 if failures else 0]
    text = text.removeprefix("connection failed:").strip().removeprefix("ERROR:").strip()
    text = printable(text, MOST_CHARACTERS)
    return f"{text}; {SEE_ALL_ROWS}" if is_row_security(error) else text


# What libpq says where nothing answers, or nothing of that name is there.
NOTHING_THERE = (
    "Connection refused",
    "No such file or directory",
    "failed to resolve host",
    "timeout expired",
    "timed out",
    "No route to host",
    "unreachable",
    "Host is down",
)
NO_ROOM = ("too many clients", "too many connections", "connection slots", "no more connections")


def is_nothing_there(error: psycopg.OperationalError) -> bool:
    """Return whether no server has answered at all; what one says has a severity."""
    says = str(error)
    return "FATAL:" not in says and any(each in says for each in NOTHING_THERE)


def is_no_room(error: psycopg.OperationalError) -> bool:
    """Return whether a server, or a pooler, has as many sessions as it may have."""
    return error.sqlstate == "53300" or any(each in str(error) for each in NO_ROOM)


# What a person can do about a statement of ours that is refused, by SQLSTATE.
WAYS_OUT = {
    "25006": "it may not be written: it is a standby, or default_transaction_read_only is on for"
    " this role, database or server",
    "42501": "pgembed doctor names the rights that this role lacks",
}


def refused(error: Exception) -> str:
    """Return, on one line, what the database says to a statement of ours, and the way out."""
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    way_out = None if is_row_security(error) else WAYS_OUT.get(state or "")
    return "; ".join(filter(None, (f"the database refused: {first_line(error)}", way_out)))


# Whoever would see a part of the rows only must not work at all.
SEE_ALL_ROWS = (
    "to pgembed, rows that are hidden would pass for deleted ones: work as a role that no policy"
    " applies to, such as one that was altered to have BYPASSRLS"
)


def is_row_security(error: BaseException) -> bool:
    """Return whether PostgreSQL refuses to hide rows from us, in whichever language."""
    return isinstance(error, psycopg.Error) and error.diag.source_function == "check_enable_rls"


def dependents(error: psycopg.errors.DependentObjectsStillExist) -> str:
    """Return what depends on that which was to be dropped, on one line."""
    detail = "; ".join((error.diag.message_detail or first_line(error)).splitlines())
    return printable(detail, MOST_CHARACTERS)
