"""Applies the SQL files of ``migrations/`` to the database, once each, in order."""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from pgqueue_embed.db import applications
from pgqueue_embed.db.dsn import place_of
from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.extension import find_extension
from pgqueue_embed.db.locks import MIGRATION_LOCK
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.db.steps import AnyConnection, Step, Steps, run
from pgqueue_embed.errors import MigrationError
from pgqueue_embed.log import get_logger

MINIMUM_SERVER_VERSION = 130_000
MINIMUM_VECTOR_VERSION = (0, 5)
ENCODING = "UTF8"

WHERE_PGVECTOR_IS = (
    "Debian 13 and PostgreSQL's own APT repository: postgresql-NN-pgvector; Homebrew: pgvector;"
    " Postgres.app, RDS and most hosts have it"
)


def migrations_folder() -> Path:
    """Return the folder of SQL files: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    packaged = package / "migrations"
    return packaged if packaged.is_dir() else package.parent / "migrations"


def migrate(conninfo: str) -> list[str]:
    """Bring schema pgembed up to date and return the names of the migrations applied now.

    Safe from any number of machines at once: they take turns on an advisory lock. Raises
    MigrationError when the server is too old, the vector extension is absent, the role lacks a
    right, or the schema is newer than this program. A right that a restored dump gave to everybody
    is taken back, where the role may.
    """
    with connect(conninfo) as lock, lock.transaction():
        lock.execute("select pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
        with connect(conninfo) as connection:
            _check_server(connection)
            with _explained():
                applied = _applied(conninfo, connection)
                revoke_from_public(connection)
                return applied


def _applied(conninfo: str, connection: Connection) -> list[str]:
    is_complete = applied_migrations(connection) == available_migrations()
    if is_complete and find_extension(connection) is not None:
        return []  # a role that may not create anything comes this far
    connection.refuse_pooler("pgembed migrate")
    _create_extension(connection)
    connection.execute("create schema if not exists pgembed")
    _refuse_newer(connection)
    return _apply(conninfo)


PRESENT = """
select
    to_regclass('pgembed._yoyo_migration') is not null,
    (
        select min(format('pgembed.%I', relname))
        from pg_class
        where relnamespace = to_regnamespace('pgembed')
            and relrowsecurity
            and row_security_active(oid)
    )
"""


def applied_migrations(connection: Connection) -> list[str]:
    """Return the names of the migrations that the database has, in order; none without a schema.

    Raises MigrationError where policies would hide rows of pgembed's own tables from this role.
    """
    return run(connection, _applied_ones())


def _applied_ones() -> Steps[list[str]]:
    [(present, hidden)] = yield Step(PRESENT)
    if hidden is not None:
        raise MigrationError(
            f"row-level security would hide rows of {hidden} from this role; the owner of schema"
            f" pgembed: alter table {hidden} disable row level security"
        )
    if not present:
        return []
    rows = yield Step("select migration_id from pgembed._yoyo_migration order by 1")
    return [name for (name,) in rows]


def available_migrations() -> list[str]:
    """Return the names of the migrations that this program carries, in order."""
    return sorted(path.stem for path in migrations_folder().glob("[0-9]*.sql"))


def check_schema(connection: Connection) -> None:
    """Raise MigrationError unless the database has exactly this program's migrations."""
    run(connection, schema_checked(connection))


def schema_checked(connection: AnyConnection) -> Steps[None]:
    """Do what `check_schema` does."""
    applied, available = (yield from _applied_ones()), available_migrations()
    place = place_of(connection.info.dsn)
    newer = sorted(set(applied) - set(available))
    if newer:
        raise MigrationError(
            f"{place} has migration {newer[-1]}, which this pgembed does not know;"
            " upgrade pgembed on this machine"
        )
    if applied != available:
        what = "has no schema pgembed yet" if not applied else "needs a newer schema pgembed"
        raise MigrationError(f"{place} {what}; run: pgembed migrate")


def _apply(conninfo: str) -> list[str]:
    # Imported here: it costs every other command 70 ms.
    from yoyo import read_migrations
    from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
    from yoyo.connections import parse_uri
    from yoyo.migrations import Migration, MigrationStep

    class File(Migration):  # type: ignore[misc]
        """One file as one step: the server parts it into statements, yoyo takes a second for it."""

        def load(self) -> None:
            text = Path(self.path).read_text(encoding="utf-8")
            self._depends: set[Migration] = set()
            self.steps = [MigrationStep(0, text, None)]

    class Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]
        """Yoyo over our own connections, with its tables in schema pgembed."""

        def connect(self, _uri: Any) -> Connection:
            return connect(conninfo, application_name=applications.MIGRATE)

        def init_connection(self, connection: Connection) -> None:
            connection.execute("set search_path to pgembed")

        def apply_one(self, migration: Migration, force: bool = False, mark: bool = True) -> None:
            """Apply and mark in one transaction: yoyo takes two, and could be ended in between."""
            self.ensure_internal_schema_updated()
            with self.transaction():
                migration.process_steps(self, "apply", force=force)
                self.mark_one(migration)

    logging.getLogger("yoyo").setLevel(logging.ERROR)
    with Backend(parse_uri("postgresql+psycopg://"), "_yoyo_migration") as backend:
        backend.init_database()
        # Yoyo takes a pattern, and a folder may be called [so].
        found = read_migrations(glob.escape(str(migrations_folder())))
        files = [File(each.id, each.path, each.source_dir) for each in found]
        pending = backend.to_apply(found.__class__(files))
        backend.apply_migrations(pending)
        return [migration.id for migration in pending]


# What runs with its owner's rights is for the owner alone, unless it is granted. A dump without
# privileges forgets that, and a function is everybody's then.
OPEN_FUNCTIONS = """
select
    format('%I.%I(%s)', nspname, proname, pg_get_function_identity_arguments(pg_proc.oid)),
    pg_has_role(proowner, 'usage')
from pg_proc
join pg_namespace on pg_namespace.oid = pronamespace
where nspname = 'pgembed'
    and prosecdef
    and exists (
        select
        from aclexplode(coalesce(proacl, acldefault('f', proowner)))
        where grantee = 0
    )
order by 1
"""


def open_functions(connection: Connection) -> list[tuple[str, bool]]:
    """Return the functions with their owner's rights that anybody may call; whether we own them."""
    return [(name, ours) for name, ours in connection.execute(OPEN_FUNCTIONS)]


def revoke_from_public(connection: Connection) -> list[str]:
    """Take those functions back from everybody, as far as this role owns them; returns them."""
    revoked = [name for name, ours in open_functions(connection) if ours]
    for name in revoked:
        # The name is quoted by the server.
        revoke = f"revoke all on function {name} from public"
        connection.execute(sql.SQL(revoke))
        get_logger().warning("right taken back from everybody", function=name)
    return revoked


def _refuse_newer(connection: Connection) -> None:
    if set(applied_migrations(connection)) - set(available_migrations()):
        check_schema(connection)


def _check_server(connection: Connection) -> None:
    version = connection.info.server_version
    if version < MINIMUM_SERVER_VERSION:
        raise MigrationError(
            f"PostgreSQL {version // 10_000} is too old; pgembed needs PostgreSQL 13 or newer"
        )
    encoding = connection.value("show server_encoding")
    if encoding != ENCODING:
        # Others lack letters of our own messages, and SQL_ASCII counts bytes for characters.
        raise MigrationError(
            f"{connection.place} is encoded in {encoding}, and pgembed needs {ENCODING}: create"
            f" database … encoding '{ENCODING}' template template0, and move the tables there"
        )


def _create_extension(connection: Connection) -> None:
    extension = find_extension(connection)
    if extension is None:
        _require_available(connection)
        try:
            with connection.transaction():
                # Where an administrator's own CREATE EXTENSION would put it.
                connection.execute("set local search_path to default")
                connection.execute("create extension vector")
        except psycopg.errors.InsufficientPrivilege:
            raise MigrationError(
                "the vector extension is not created in this database and this role may not"
                " create it; ask an administrator to run: create extension vector"
            ) from None
        return
    if not extension.is_at_least(*MINIMUM_VECTOR_VERSION):
        raise MigrationError(
            f"pgvector {extension.version} is too old; pgembed needs 0.5 or newer:"
            " alter extension vector update"
        )


def _require_available(connection: Connection) -> None:
    row = connection.execute(
        "select 1 from pg_available_extensions where name = 'vector'"
    ).fetchone()
    if row is None:
        raise MigrationError(
            "pgvector is not installed on this PostgreSQL server; install it there"
            f" ({WHERE_PGVECTOR_IS}) and run pgembed migrate again"
        )


# Of a name that a migration gives.
TAKEN = (
    psycopg.errors.DuplicateTable,
    psycopg.errors.DuplicateFunction,
    psycopg.errors.DuplicateObject,
)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise MigrationError(
            f"this role may not create schema pgembed ({first_line(error)});"
            " grant create on the database, or migrate as its owner"
        ) from None
    except TAKEN as error:
        raise MigrationError(
            f"schema pgembed holds something that pgembed did not make ({first_line(error)});"
            " rename it or drop it, and run pgembed migrate again"
        ) from None
    except psycopg.errors.LockNotAvailable:
        raise MigrationError(
            "a table of schema pgembed stayed locked for 5 seconds; nothing was changed, try again"
        ) from None
