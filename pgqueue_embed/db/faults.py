"""Classifies errors of PostgreSQL by their origin and by whether the session still lives.

A statement of ours on our own tables fails because the database is away, or by a fault of this
program. Whatever touches a user's object (source, view, function, target, trigger) is executed
`on_users_tables`: what it says is the pipeline's fault, whatever its SQLSTATE, short of a few that
are no pipeline's fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg

from pgqueue_embed.db.errors import first_line, is_away
from pgqueue_embed.db.session import OutOfTime
from pgqueue_embed.errors import (
    DatabaseUnavailable,
    LeaseLost,
    MissingRight,
    PgembedError,
    PipelineFault,
    RoleFault,
    SetupError,
    UsageError,
)

# Another transaction was in the way, or the time was up: the next try may do.
PASSING = ("40", "55P03", "57014")

# A function of a user's may raise these codes too, and does so again and again.
PROCEDURAL = ("pl_exec.c", "plpy_", "plperl.c", "pltcl.c")

# The state of a transaction: a function that makes its own read-only gets this too. A server that
# may not be written refuses our own statements before any of a user's.
OF_A_TRANSACTION = "25"

# A right that this role lacks, or who it is to a foreign server.
OF_THE_ROLE = ("42501", "28")

# What a table says to every row: it is not there, may not be touched, cannot be written. Raised
# inside a function (there is a context then), they may be about one row.
OF_THE_TABLE = ("0A", "3D", "3F", "42", "55", "58", "XX")

# A function of a user's that finds these in the user's own sessions may not find them in ours.
UNKNOWN = (
    psycopg.errors.UndefinedFunction,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedObject,
)
BARE_NAME = (
    "; if it is there, a function names it without its schema, and pgembed's sessions look in"
    " pg_catalog alone: write schema.name in the function, or give it a path of its own: alter"
    " function … set search_path"
)


@contextmanager
def on_users_tables(connection: psycopg.BaseConnection[Any], doing: str) -> Iterator[None]:
    """Say what PostgreSQL means by an error inside the block, which is `doing` something.

    Raises PipelineFault, or RoleFault where it is about the role of `connection`, and
    DatabaseUnavailable for a session that is lost. What is no pipeline's fault stays as it is: see
    `is_given_back`.
    """
    try:
        yield
    except OutOfTime:
        raise
    except psycopg.Error as error:
        if connection.closed:
            raise DatabaseUnavailable(f"the connection was lost: {first_line(error)}") from None
        if not is_of_users(error):
            raise
        raise fault(connection, error, doing) from None


def fault(
    connection: psycopg.BaseConnection[Any], error: psycopg.Error, doing: str
) -> PipelineFault:
    """Return the fault that `error` is, in one line: what was being done, and what the server says.

    `doing` begins a sentence, such as "reading public.reports".
    """
    says = first_line(error)
    if is_of_the_role(error):
        return RoleFault(f"{doing} as role {connection.info.user}: {says}")
    # A context is that of a function; what is not there by our own words is not there at all, and
    # a function may raise the code with words of its own.
    looks_on_the_path = (
        isinstance(error, UNKNOWN) and error.diag.context and not is_raised_by_a_function(error)
    )
    return PipelineFault(
        f"{doing}: {says}{BARE_NAME if looks_on_the_path else ''}",
        is_of_the_table=is_of_the_table(error),
    )


def is_of_the_role(error: psycopg.Error) -> bool:
    """Return whether another role might have done what failed with `error`."""
    state = error.sqlstate or ""
    return state.startswith(OF_THE_ROLE) or error.diag.source_function == "GetUserMapping"


def is_of_the_table(error: psycopg.Error) -> bool:
    """Return whether the table that is written to would say so to any record."""
    is_bare = not error.diag.context
    return is_bare and (error.sqlstate or "").startswith(OF_THE_TABLE)


def is_passing(error: BaseException) -> bool:
    """Return whether, as PostgreSQL says, another session was in the way or the time was up."""
    if not isinstance(error, psycopg.Error):
        return False
    return (error.sqlstate or "").startswith(PASSING) and not is_raised_by_a_function(error)


def is_raised_by_a_function(error: psycopg.Error) -> bool:
    """Return whether a function in a procedural language has raised `error` by itself."""
    return (error.diag.source_file or "").startswith(PROCEDURAL)


# What our own statements name is not there: schema pgembed was dropped, or is another one.
WITHOUT_OUR_SCHEMA = ("3F000", "42P01", "42703", "42883")


def error_type(error: psycopg.Error) -> type[PgembedError]:
    """Return what an error of a statement of ours is for a program; see the tree of errors.

    What is worth trying again, since another session was in the way, counts as a database that is
    away. UsageError is for a value that PostgreSQL cannot read, PgembedError for what is
    not expected.
    """
    if is_of_the_role(error):
        return MissingRight
    if is_away(error) or is_passing(error):
        return DatabaseUnavailable
    if error.sqlstate in WITHOUT_OUR_SCHEMA:
        return SetupError
    return UsageError if isinstance(error, psycopg.DataError) else PgembedError


def is_given_back(error: BaseException) -> bool:
    """Return whether a claim that failed with `error` is given back without a charge."""
    return isinstance(error, LeaseLost) or is_away(error) or is_passing(error)


def is_of_users(error: psycopg.Error) -> bool:
    """Return whether an error on a user's table is that table's doing, if the session lives."""
    return (error.sqlstate or "").startswith(OF_A_TRANSACTION) or not is_given_back(error)


def naming_the_record(
    error: PipelineFault, keys: Sequence[str], probe: Callable[[Sequence[str]], object]
) -> PipelineFault:
    """Return `error` with the key of the record that causes it, if it is one of `keys`.

    `probe` raises PipelineFault if any of the keys it is given is at fault.
    """
    if isinstance(error, RoleFault):
        return error
    culprit = _first_at_fault(keys, lambda some: _fault_of(probe, some) is not None)
    own = None if culprit is None else _fault_of(probe, [culprit])
    return error if own is None else PipelineFault(f"record {culprit}: {own}")


def _first_at_fault(keys: Sequence[str], fails: Callable[[Sequence[str]], bool]) -> str | None:
    """Return one of `keys` that fails while others do not, or the only one; else None.

    Halves them as often as need be: `fails` is asked some 20 times about 4,096 keys.
    """
    is_one_of_many = len(keys) == 1
    while len(keys) > 1:
        first, second = keys[: len(keys) // 2], keys[len(keys) // 2 :]
        if not fails(first):
            keys, is_one_of_many = second, True
        else:
            keys, is_one_of_many = first, is_one_of_many or not fails(second)
    return keys[0] if keys and is_one_of_many else None


def _fault_of(
    probe: Callable[[Sequence[str]], object], keys: Sequence[str]
) -> PipelineFault | None:
    try:
        probe(keys)
    except PipelineFault as error:
        return error
    return None
