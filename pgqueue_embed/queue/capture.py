"""Change capture: triggers that queue what changes in the source, installed, removed, looked for.

Whether a pipeline has it is asked of the catalogue, and stored nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import psycopg
from psycopg import sql

from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.locks import in_short_waits
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.captured_columns import captured_columns
from pgqueue_embed.queue.triggers import (
    EVENTS,
    EVENTS_OF_A_PART,
    Event,
    create_function,
    create_trigger,
    enable_trigger,
)
from pgqueue_embed.source.trust import check_trust
from pgqueue_embed.target.parts import is_partitioned
from pgqueue_embed.untrusted.shell import command

Result = TypeVar("Result")

# What a table says that is none of the ordinary ones, such as one that an extension manages.
UNSUITED = (psycopg.errors.FeatureNotSupported, psycopg.errors.WrongObjectType)


def install(connection: Connection, pipeline: Pipeline) -> list[Table]:
    """Put the triggers of `pipeline` on its source, its partitions and the tables that inherit it.

    These have triggers of their own, for what is written straight to them. Returns the tables that
    lacked some, or where one fired in other sessions than it is meant for; all is done or nothing.
    Raises UsageError when the source cannot have triggers, the role may not make them, or the table
    is never without a writer.
    """
    _check(connection, pipeline)
    check_trust(connection, pipeline.spec)
    return _changed(connection, pipeline, lambda: _install(connection, pipeline))


def remove(connection: Connection, pipeline: Pipeline) -> bool:
    """Remove the triggers of `pipeline`, wherever they are; returns whether there were any.

    Raises UsageError when the role may not, or the source is in use without a pause.
    """
    if not _functions(connection, pipeline):
        return False
    _changed(connection, pipeline, lambda: drop_functions(connection, pipeline))
    return True


def is_on(connection: Connection, pipeline: Pipeline) -> bool:
    """Return whether changes of the source are captured; see `lacking` for those of its parts."""
    return len(_functions(connection, pipeline)) == len(EVENTS)


def lacking(connection: Connection, pipeline: Pipeline) -> list[Table]:
    """Return the tables of the source that lack a trigger of `pipeline`, itself first.

    One that is disabled is lacking.
    """
    wanted = _wanted(connection, pipeline)
    return [
        table
        for table in _tables(connection, pipeline)
        if not wanted.keys() <= _firing(connection, table).keys()
    ]


def misfiring(connection: Connection, pipeline: Pipeline) -> list[str]:
    """Return which triggers of `pipeline` fire in other sessions than they are meant for.

    So they do once all triggers of a table were disabled and enabled again, as a restore does it,
    or once the source was made a partition of another table.
    """
    wanted = _wanted(connection, pipeline)
    return [
        f"{name} on {table} fires {SESSIONS[mode]}, not {SESSIONS[wanted[name]]}"
        for table in _tables(connection, pipeline)
        for name, mode in _firing(connection, table).items()
        if wanted.get(name, mode) != mode
    ]


SESSIONS = {
    "O": "in ordinary sessions",
    "A": "in all sessions",
    "R": "where changes are replicated",
}


def _firing(connection: Connection, table: Table) -> dict[str, str]:
    enabled = _enabled(connection, table)
    return {name: mode for name, mode in enabled.items() if mode in SESSIONS}


def drop_functions(connection: Connection, pipeline: Pipeline) -> None:
    """Drop the functions and with them, on any table, their triggers; in the caller's transaction.

    By the functions, since only its owner may drop a trigger off a table.
    """
    functions = _functions(connection, pipeline)
    if functions:
        listed = sql.SQL(", ").join(sql.Identifier("pgembed", name) for name in functions)
        connection.execute(sql.SQL("drop function {} cascade").format(listed))


def _functions(connection: Connection, pipeline: Pipeline) -> list[str]:
    rows = connection.execute(
        """
        select proname
        from pg_proc
        where pronamespace = 'pgembed'::regnamespace and proname = any(%s)
        """,
        ([event.function(pipeline) for event in EVENTS],),
    )
    return [name for (name,) in rows]


def _events(connection: Connection, pipeline: Pipeline) -> tuple[Event, ...]:
    is_a_part = connection.value(IS_A_PART, (pipeline.source.quoted,))
    return EVENTS_OF_A_PART if is_a_part else EVENTS


def _wanted(connection: Connection, pipeline: Pipeline) -> dict[str, str]:
    events = _events(connection, pipeline)
    return {event.trigger(pipeline): event.enabled for event in events}


def _enabled(connection: Connection, table: Table) -> dict[str, str]:
    """Return the triggers of a table, and in which sessions they fire."""
    rows = connection.execute(
        "select tgname, tgenabled::text from pg_trigger where tgrelid = %s::regclass",
        (table.quoted,),
    )
    return dict(rows.fetchall())


FAMILY = """
with recursive family (oid, depth) as (
    select to_regclass(%s)::oid, 0
    union all
    select inhrelid, depth + 1
    from family
    join pg_inherits on inhparent = family.oid
)
"""

# Whether statements that name none of these tables can write to them.
IS_A_PART = """
{family}
select exists (
    select
    from family
    join pg_inherits on inhrelid = family.oid
    where inhparent not in (select oid from family)
)
""".replace("{family}", FAMILY)

# A foreign table has no transition tables; and what others change there, no trigger is told of.
TABLES = """
{family}
select nspname, relname
from family
join pg_class using (oid)
join pg_namespace on pg_namespace.oid = relnamespace
where relkind in ('r', 'p')
group by nspname, relname
order by min(depth), nspname, relname
""".replace("{family}", FAMILY)


def _tables(connection: Connection, pipeline: Pipeline) -> list[Table]:
    rows = connection.execute(TABLES, (pipeline.source.quoted,)).fetchall()
    if not rows:
        raise UsageError(
            f"there is no table {pipeline.source}{connection.place_if_private}; put it back as it"
            f" was, or: {command('drop', pipeline.name)}"
        )
    return [Table(schema=schema, name=name) for schema, name in rows]


# Of two that make the same functions at once, PostgreSQL would fail one.
ONE_AT_A_TIME = "select pg_advisory_xact_lock(hashtext('pgembed capture'), %s::integer)"


def _install(connection: Connection, pipeline: Pipeline) -> list[Table]:
    connection.execute(ONE_AT_A_TIME, (pipeline.id % 2**31,))
    wanted = _events(connection, pipeline)
    incomplete = _incomplete(connection, pipeline)
    if incomplete and wanted != EVENTS:
        # Those of before it was made a part would queue the same once more.
        drop_functions(connection, pipeline)
    captured = captured_columns(connection, pipeline)
    version = connection.info.server_version
    partitioned = is_partitioned(connection, pipeline.source)
    # A function that no trigger calls tells that capture is on, like the others.
    for event in {event.name: event for event in (*EVENTS, *wanted)}.values():
        make = create_function(
            pipeline, event, captured, server_version=version, partitioned=partitioned
        )
        connection.execute(make)
        function = sql.Identifier("pgembed", event.function(pipeline))
        connection.execute(sql.SQL("revoke all on function {}() from public").format(function))
    for table in _incomplete(connection, pipeline):
        _install_on(connection, pipeline, table, wanted)
    connection.execute(NOTE_IDENTITY, (pipeline.id,))
    return incomplete


# What the source is made of from now on; what has become of it since it was last noted is found
# by the scan that follows. Without the right to note it, a worker does, and has all compared again.
NOTE_IDENTITY = """
update pgembed.pipelines
set source_identity = pgembed.source_identity(pipelines)
where id = %s and has_column_privilege('pgembed.pipelines', 'source_identity', 'update')
"""


def _incomplete(connection: Connection, pipeline: Pipeline) -> list[Table]:
    wanted = _wanted(connection, pipeline)
    return [
        table
        for table in _tables(connection, pipeline)
        if not wanted.items() <= _enabled(connection, table).items()
    ]


def _install_on(
    connection: Connection, pipeline: Pipeline, table: Table, wanted: Sequence[Event]
) -> None:
    # A trigger for rows of a partitioned table is on its partitions already.
    there = _enabled(connection, table)
    for event in wanted:
        if event.trigger(pipeline) not in there:
            connection.execute(create_trigger(pipeline, event, table))
        if there.get(event.trigger(pipeline), "O") != event.enabled:
            connection.execute(enable_trigger(pipeline, event, table))


# A trigger fires in any writer's transaction, with the rights of its function's owner.
RIGHTS = """
select
    relkind in ('r', 'p'),
    has_schema_privilege('pgembed', 'create') and has_table_privilege('pgembed.work', 'insert')
from pg_class
where oid = to_regclass(%s)
"""


def _check(connection: Connection, pipeline: Pipeline) -> None:
    row = connection.execute(RIGHTS, (pipeline.source.quoted,)).fetchone()
    if row is None:
        raise UsageError(f"there is no table {pipeline.source}")
    is_table, may_insert = row
    if not is_table:
        raise UsageError(
            f"{pipeline.source} is a view or a foreign table, whose changes no trigger sees;"
            f" {_without(pipeline)}"
        )
    if not may_insert:
        raise _refused(pipeline, "create on schema pgembed, or insert on pgembed.work, is missing")


def _changed(connection: Connection, pipeline: Pipeline, change: Callable[[], Result]) -> Result:
    try:
        return in_short_waits(connection, change, table=pipeline.source)
    except psycopg.errors.InsufficientPrivilege as error:
        raise _refused(pipeline, first_line(error)) from None
    except UNSUITED as error:
        raise UsageError(
            f"{pipeline.source} cannot have such triggers ({first_line(error)});"
            f" {_without(pipeline)}"
        ) from None


def _refused(pipeline: Pipeline, why: str) -> UsageError:
    return UsageError(
        f"this role may not put triggers on {pipeline.source} or take them away ({why}); do it as"
        f" the owner of that table, with create on schema pgembed; {_without(pipeline)}"
    )


def _without(pipeline: Pipeline) -> str:
    return f"without triggers, {command('enqueue', pipeline.name)} finds changes"
