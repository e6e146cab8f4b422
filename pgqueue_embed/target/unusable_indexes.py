"""Indexes that no query can use and writers keep up: builds that were broken off leave them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
from psycopg import sql

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection

# Dropping waits, as building does, for every transaction that uses the table: the next one does it.
CLEAN_UP_SECONDS = 5.0

UNUSABLE = """
select nspname, relname
from pg_index
join pg_class on pg_class.oid = indexrelid
join pg_namespace on pg_namespace.oid = relnamespace
where indrelid = %(table)s::regclass and not indisvalid and relname = coalesce(%(name)s, relname)
order by relname
"""

# Who builds an index concurrently holds this lock on its table, and so does who cleans it up.
IS_BUILDING = """
select exists (
    select
    from pg_locks
    where relation = %s::regclass
        and database = (select oid from pg_database where datname = current_database())
        and mode = 'ShareUpdateExclusiveLock'
        and granted
)
"""


def unusable_indexes(connection: Connection, table: Table, name: str | None = None) -> list[Table]:
    """Return the indexes of `table` itself that no query can use: that called `name`, or all."""
    values = {"table": table.quoted, "name": name}
    rows = connection.execute(UNUSABLE, values).fetchall()
    return [Table(schema=schema, name=each) for schema, each in rows]


def is_being_built(connection: Connection, table: Table) -> bool:
    """Return whether an index of `table` may be built at this moment."""
    return bool(connection.value(IS_BUILDING, (table.quoted,)))


def wait_for_builders(connection: Connection, table: Table) -> None:
    """Wait until no session builds an index of `table` concurrently.

    The server goes on with what a client has asked for who was killed.
    """
    with connection.transaction():
        lock = sql.SQL("lock table {} in share update exclusive mode")
        connection.execute(lock.format(table.identifier))


def drop_unusable(connection: Connection, table: Table, name: str | None = None) -> None:
    """Drop what a build that was broken off leaves: indexes of `table` that no query can use.

    That called `name`, or any.
    """
    for index in unusable_indexes(connection, table, name):
        drop = sql.SQL("drop index concurrently if exists {}")
        connection.execute(drop.format(index.identifier))


@contextmanager
def dropped_if_broken_off(
    connection: Connection, table: Table, name: str | None = None
) -> Iterator[None]:
    """Do what `drop_unusable` does once the build in the block fails, or is interrupted.

    Unless that has to wait for another open transaction, as the build did: the next one does it.
    """
    try:
        yield
    except BaseException:
        with suppress(psycopg.Error):
            before = connection.value("select current_setting('statement_timeout')")
            set_timeout = "select set_config('statement_timeout', %s, false)"
            connection.execute(set_timeout, (f"{CLEAN_UP_SECONDS}s",))
            try:
                drop_unusable(connection, table, name)
            finally:
                connection.execute(set_timeout, (before,))
        raise
