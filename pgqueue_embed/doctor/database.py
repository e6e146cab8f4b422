"""Checks of the database: the way to it, its version, the extension, the schema, the rights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pgqueue_embed.db.dsn import describe_dsn
from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.extension import find_extension
from pgqueue_embed.db.migrate import (
    MINIMUM_SERVER_VERSION,
    MINIMUM_VECTOR_VERSION,
    WHERE_PGVECTOR_IS,
    available_migrations,
    check_schema,
    open_functions,
)
from pgqueue_embed.db.session import Connection
from pgqueue_embed.doctor.check import Check, failed, ok, warning
from pgqueue_embed.errors import MigrationError
from pgqueue_embed.local_server.ports import HOST

# A claim takes about a dozen round trips; at this many milliseconds each they begin to show
# beside the seconds of its computation.
SLOW_MILLISECONDS = 50.0

# Leases and retries go by the database's clock alone, but logs of two machines are read together.
CLOCK_SECONDS = 60.0


def check_connection(connection: Connection, conninfo: str) -> Iterator[Check]:
    """Say where the database is, as whom it is used and how far away it is."""
    role = connection.value("select current_user")
    place = describe_dsn(conninfo)
    where = place if f"{role}@" in place else f"{place}, as {role}"
    milliseconds = statistics.median(_round_trip(connection) for _ in range(5)) * 1000
    away = f"{milliseconds:.1f} ms a round trip"
    if milliseconds > SLOW_MILLISECONDS:
        yield warning("connection", f"{where}, {away}", "use a higher --concurrency to hide it")
    else:
        yield ok("connection", f"{where}, {away}")
    seconds = connection.value("select extract(epoch from clock_timestamp())::double precision")
    apart = abs(time.time() - seconds)
    if apart > CLOCK_SECONDS:
        yield warning(
            "clock",
            f"this machine's is {apart:,.0f} s away from the database's, which alone counts",
            "set this machine's clock by the network, or its logs mislead",
        )


def check_account(conninfo: str) -> Iterator[Check]:
    """Warn where this is the private server, and it has an account that others have as well."""
    from pgqueue_embed.local_server import default_server

    found = default_server().status()
    named = conninfo_to_dict(conninfo)
    ours = found.running and (named.get("host"), named.get("port")) == (HOST, str(found.port))
    if ours and found.shared_account:
        yield warning("private server", found.finding, found.way_out)


def _round_trip(connection: Connection) -> float:
    started = time.perf_counter()
    connection.execute("select 1")
    return time.perf_counter() - started


def check_server(connection: Connection) -> Iterator[Check]:
    """Check the version of PostgreSQL, and that it can be written to."""
    version, standby, read_only = connection.row(
        "select current_setting('server_version'), pg_is_in_recovery(),"
        " current_setting('default_transaction_read_only') = 'on'"
    )
    if connection.info.server_version < MINIMUM_SERVER_VERSION:
        yield failed("PostgreSQL", f"{version} is too old", "upgrade to PostgreSQL 13 or newer")
    elif standby:
        yield failed("PostgreSQL", f"{version}, a read-only standby", "connect to the primary")
    elif read_only:
        yield failed(
            "PostgreSQL",
            f"{version}, and nothing may be written: default_transaction_read_only is on for this"
            " server, database or role",
            "whoever set it: alter database …, or role …, reset default_transaction_read_only",
        )
    else:
        yield ok("PostgreSQL", version)


def check_extension(connection: Connection) -> Iterator[Check]:
    """Check that pgvector is there, and new enough."""
    extension = find_extension(connection)
    if extension is None:
        yield _absent_extension(connection)
    elif not extension.is_at_least(*MINIMUM_VECTOR_VERSION):
        fix = "run: alter extension vector update"
        yield failed("pgvector", f"{extension.version} is too old, pgembed needs 0.5", fix)
    else:
        limits = "" if extension.is_at_least(0, 7) else " (halfvec needs 0.7)"
        yield ok("pgvector", f"{extension.version} in schema {extension.schema}{limits}")
        fix = "install a newer pgvector on the server, and run: alter extension vector update"
        yield from (
            warning("pgvector", f"{extension.version}: {fault}", fix)
            for fault in extension.faults()
        )


def _absent_extension(connection: Connection) -> Check:
    row = connection.execute(
        "select default_version from pg_available_extensions where name = 'vector'"
    ).fetchone()
    if row is None:
        return failed(
            "pgvector",
            "not installed on the server",
            f"install it there ({WHERE_PGVECTOR_IS})",
        )
    return failed(
        "pgvector",
        f"{row[0]} is installed, but not created in this database",
        "run: pgembed migrate; if that may not, an administrator: create extension vector",
    )


def check_migrations(connection: Connection) -> Iterator[Check]:
    """Check that schema pgembed is there, may be used, and is this program's."""
    present = connection.value(
        "select exists (select 1 from pg_namespace where nspname = 'pgembed')"
    )
    if not present:
        yield _absent_schema(connection)
        return
    usable, role = connection.row(
        "select has_schema_privilege('pgembed', 'usage'), quote_ident(current_user)"
    )
    if not usable:
        yield failed("schema", "this role may not use schema pgembed", _grants(role))
        return
    try:
        check_schema(connection)
    except MigrationError as error:
        yield failed("schema", str(error))
    except psycopg.errors.InsufficientPrivilege as error:
        yield failed("schema", first_line(error), _grants(role))
    else:
        yield ok("schema", f"pgembed is up to date ({available_migrations()[-1]})")


def _grants(role: str) -> str:
    return (
        f"its owner: grant usage on schema pgembed to {role};"
        f" grant select, insert, update, delete on all tables in schema pgembed to {role}"
    )


def _absent_schema(connection: Connection) -> Check:
    may_create, role, database = connection.row(
        "select has_database_privilege(current_database(), 'create'),"
        " quote_ident(current_user), quote_ident(current_database())"
    )
    if may_create:
        return failed("schema", "there is no schema pgembed yet", "run: pgembed migrate")
    return failed(
        "schema",
        "there is no schema pgembed, and this role may not create it",
        f"the database's owner: grant create on database {database} to {role}",
    )


def _open_functions(connection: Connection) -> Iterator[Check]:
    found = open_functions(connection)
    if found:
        names = ", ".join(name for name, _ in found)
        who = "run" if all(ours for _, ours in found) else "their owner"
        yield failed(
            "rights",
            f"anybody who may use schema pgembed may call {names} with the rights of its owner;"
            " a dump without privileges forgets who may not",
            f"{who}: pgembed migrate",
        )


# What enqueue and work do to each table; of pipelines they update state and state_reason alone.
MISSING_RIGHTS = """
select relname, string_agg(privilege, ', ' order by privilege)
from pg_class
join pg_namespace on pg_namespace.oid = relnamespace
join unnest(
    array['pipelines', 'work', 'attempts', 'records', 'batches', 'scans', 'workers', 'progress',
        'adoptions'],
    array['su', 'siud', 'siud', 'siud', 'sid', 'siu', 'siud', 's', 's']
) as needed (relation, letters) on relation = relname
join unnest(
    array['s', 'i', 'u', 'd'],
    array['select', 'insert', 'update', 'delete']
) as wanted (letter, privilege) on strpos(letters, letter) > 0
where nspname = 'pgembed'
    and case privilege
        when 'delete' then not has_table_privilege(pg_class.oid, privilege)
        else not has_any_column_privilege(pg_class.oid, privilege)
    end
group by relname
order by relname
"""


def check_rights(connection: Connection) -> Iterator[Check]:
    """Check that the role may read and write what a worker reads and writes, and others may not."""
    yield from _open_functions(connection)
    missing = connection.execute(MISSING_RIGHTS).fetchall()
    if not missing:
        yield ok("rights", "this role may read and write schema pgembed")
        return
    role = connection.value("select quote_ident(current_user)")
    table, rights = missing[0]
    more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
    yield failed(
        "rights",
        f"this role lacks {rights} on pgembed.{table}{more}",
        _grants(role),
    )
