"""Migrations: applied once, by many machines at once, and explained when they cannot be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgqueue_embed.db import migrate as migrate_module
from pgqueue_embed.db.migrate import (
    applied_migrations,
    available_migrations,
    check_schema,
    migrate,
    migrations_folder,
)
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import MigrationError
from pgqueue_embed.local_server import LocalServer
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.conftest import Administrator, database_conninfo
from tests.migrations.dump import dump_schema
from tests.support.corpus import make_source, texts
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.working import drain, open_session

DUMP = Path(__file__).with_name("schema.txt")
PASSWORD = "of-a-role"


@pytest.fixture
def plain_role(connection: Connection) -> Iterator[str]:
    """A role that may log in and nothing else."""
    yield from _role(connection)


def _role(connection: Connection) -> Iterator[str]:
    role = sql.Identifier("plain role")
    connection.execute(
        sql.SQL("create role {} login password {}").format(role, sql.Literal(PASSWORD))
    )
    yield "plain role"
    connection.execute(sql.SQL("drop owned by {} cascade").format(role))
    connection.execute(sql.SQL("drop role {}").format(role))


def as_role(conninfo: str, role: str) -> str:
    return make_conninfo(conninfo, user=role, password=PASSWORD)


def add_newer_migration(connection: Connection) -> None:
    connection.execute(
        "insert into pgembed._yoyo_migration (migration_hash, migration_id, applied_at_utc)"
        " values ('newer', '9999_from_the_future', now())"
    )


@pytest.mark.on_both_servers
def test_first_run_applies_everything_and_the_next_nothing(empty_conninfo: str) -> None:
    assert migrate(empty_conninfo) == available_migrations()
    with connect(empty_conninfo) as connection:
        first = dump_schema(connection)
        assert migrate(empty_conninfo) == []
        assert dump_schema(connection) == first
        assert applied_migrations(connection) == available_migrations()
        check_schema(connection)


@pytest.mark.on_both_servers
def test_twenty_machines_migrate_at_once(empty_conninfo: str) -> None:
    with ThreadPoolExecutor(20) as pool:
        applied = list(pool.map(migrate, [empty_conninfo] * 20))
    assert sorted(applied) == [[]] * 19 + [available_migrations()]
    with connect(empty_conninfo) as connection:
        check_schema(connection)


def test_schema_is_the_one_that_was_reviewed(connection: Connection) -> None:
    """After a deliberate change: UPDATE_SCHEMA=1 pytest tests/migrations, and read the diff."""
    dumped = dump_schema(connection)
    if os.environ.get("UPDATE_SCHEMA"):
        DUMP.write_text(dumped, encoding="utf-8")
    assert dumped == DUMP.read_text(encoding="utf-8")


def test_every_table_and_view_has_a_comment(connection: Connection) -> None:
    assert "comment: None" not in dump_schema(connection)


def test_every_check_is_named(connection: Connection) -> None:
    automatic = connection.execute(
        "select conrelid::regclass, conname from pg_constraint"
        " where connamespace = 'pgembed'::regnamespace and contype = 'c'"
        " and conrelid::regclass::text not like '%yoyo%' and conname ~ '_check[0-9]*$'"
    ).fetchall()
    assert automatic == []


def test_nothing_is_made_outside_the_schema(connection: Connection) -> None:
    strangers = connection.execute(
        """
        select relnamespace::regnamespace, relname
        from pg_class
        where relnamespace not in ('pg_catalog'::regnamespace, 'pgembed'::regnamespace)
            and relnamespace::regnamespace::text !~ '^(pg_|information_schema)'
        """
    ).fetchall()
    assert strangers == []


def test_files_are_numbered_without_gaps_and_say_what_they_do() -> None:
    paths = sorted(migrations_folder().glob("*.sql"))
    assert [int(path.name[:4]) for path in paths] == list(range(1, len(paths) + 1))
    for path in paths:
        assert path.read_text().startswith("--")
        assert "set local lock_timeout" in path.read_text()


def test_database_newer_than_the_program_is_refused(connection: Connection, conninfo: str) -> None:
    add_newer_migration(connection)
    for act in (lambda: migrate(conninfo), lambda: check_schema(connection)):
        with pytest.raises(MigrationError, match=r"9999_from_the_future.*upgrade pgembed"):
            act()


def test_database_without_or_with_an_older_schema_says_what_to_run(
    empty_conninfo: str, connection: Connection
) -> None:
    with (
        connect(empty_conninfo) as empty,
        pytest.raises(MigrationError, match="no schema pgembed yet; run: pgembed migrate"),
    ):
        check_schema(empty)
    connection.execute("delete from pgembed._yoyo_migration where migration_id not like '0001%'")
    with pytest.raises(MigrationError, match="needs a newer schema pgembed; run: pgembed migrate"):
        check_schema(connection)


@pytest.mark.parametrize("extension", [False, True])
def test_role_without_rights_is_told_so_in_one_line(
    empty_conninfo: str, plain_role: str, extension: bool
) -> None:
    with connect(empty_conninfo) as owner:
        if extension:
            owner.execute("create extension vector")
        expected = "grant create on the database" if extension else "create extension vector"
        with pytest.raises(MigrationError, match=expected) as refusal:
            migrate(as_role(empty_conninfo, plain_role))
        assert "\n" not in str(refusal.value)
        assert PASSWORD not in str(refusal.value)
        assert applied_migrations(owner) == []


def test_role_that_may_not_touch_an_existing_schema_is_told_so(
    empty_conninfo: str, plain_role: str
) -> None:
    database = str(conninfo_to_dict(empty_conninfo)["dbname"])
    with connect(empty_conninfo) as owner:
        owner.execute("create extension vector")
        owner.execute("create schema pgembed")
        grant = sql.SQL("grant create on database {} to {}")
        owner.execute(grant.format(sql.Identifier(database), sql.Identifier(plain_role)))
        with pytest.raises(MigrationError, match="permission denied for schema pgembed") as refusal:
            migrate(as_role(empty_conninfo, plain_role))
        assert "\n" not in str(refusal.value)


def test_role_that_may_create_schemas_needs_no_superuser(
    empty_conninfo: str, plain_role: str
) -> None:
    database = str(conninfo_to_dict(empty_conninfo)["dbname"])
    with connect(empty_conninfo) as owner:
        owner.execute("create extension vector")
        grant = sql.SQL("grant create on database {} to {}")
        owner.execute(grant.format(sql.Identifier(database), sql.Identifier(plain_role)))
        assert migrate(as_role(empty_conninfo, plain_role)) == available_migrations()
        owner.execute(sql.SQL("drop owned by {} cascade").format(sql.Identifier(plain_role)))


def test_locked_table_fails_the_migration_in_one_line_and_changes_nothing(
    connection: Connection, conninfo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in migrations_folder().glob("*.sql"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "0099_alter_work.sql").write_text(
        "-- depends: 0017_create_lexical_search\nset local lock_timeout = '100ms';\n"
        "create table pgembed.later (id int);\nalter table pgembed.work add column later int;\n"
    )
    monkeypatch.setattr(migrate_module, "migrations_folder", lambda: tmp_path)
    with connect(conninfo) as user, user.transaction():
        user.execute("lock table pgembed.work in row exclusive mode")
        with pytest.raises(MigrationError, match=r"stayed locked .* try again"):
            migrate(conninfo)
    assert connection.execute("select to_regclass('pgembed.later')").fetchone() == (None,)
    assert migrate(conninfo)[-1] == "0099_alter_work"


def test_migration_that_is_not_marked_has_changed_nothing(
    connection: Connection, conninfo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who sees what a migration changed sees its name, too; an end in between leaves neither."""
    for path in migrations_folder().glob("*.sql"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "0099_later.sql").write_text(
        f"-- depends: {available_migrations()[-1]}\ncreate table pgembed.later (id int);\n"
    )
    monkeypatch.setattr(migrate_module, "migrations_folder", lambda: tmp_path)
    connection.execute(
        "alter table pgembed._yoyo_migration"
        " add constraint unmarked check (migration_id <> '0099_later')"
    )
    with pytest.raises(psycopg.errors.CheckViolation):
        migrate(conninfo)
    assert connection.execute("select to_regclass('pgembed.later')").fetchone() == (None,)
    connection.execute("alter table pgembed._yoyo_migration drop constraint unmarked")
    assert migrate(conninfo) == ["0099_later"]


@pytest.mark.on_both_servers
def test_extension_may_live_in_any_schema(empty_conninfo: str) -> None:
    with connect(empty_conninfo) as connection:
        connection.execute('create schema "My Extensions"')
        connection.execute('create extension vector schema "My Extensions"')
        migrate(empty_conninfo)
        make_source(connection, texts(20, chunks=2))
        pipeline = make_pipeline(connection)
        enqueue(connection, pipeline, Selection())
        with open_session(empty_conninfo) as session:
            drain(session, pipeline)
        assert_converged(connection, "reports")


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_database_that_cannot_hold_every_text_is_refused(
    server: LocalServer, administrator: Administrator, encoding: str
) -> None:
    name = f"encoded_in_{encoding}".lower()
    administrator.execute(
        f"create database {name} template template0 encoding '{encoding}' locale 'C'"
    )
    try:
        with pytest.raises(MigrationError, match=f"encoded in {encoding}, and pgembed needs UTF8"):
            migrate(database_conninfo(server, name))
    finally:
        administrator.execute(f"drop database {name} with (force)")


def test_schema_that_holds_something_else_is_said_and_left(empty_conninfo: str) -> None:
    with psycopg.connect(empty_conninfo, autocommit=True) as session:
        session.execute("create schema pgembed")
        session.execute("create table pgembed.work (precious text)")
        with pytest.raises(MigrationError, match=r"did not make .*\"work\" already exists"):
            migrate(empty_conninfo)
        assert session.execute("select precious from pgembed.work").fetchall() == []
        session.execute("drop table pgembed.work")
        # What was made up to there was made as a whole.
        with connect(empty_conninfo) as connection:
            done = applied_migrations(connection)
    assert [*done, *migrate(empty_conninfo)] == available_migrations()


def test_extension_that_was_dropped_is_made_again(conninfo: str, connection: Connection) -> None:
    connection.execute("drop extension vector cascade")
    assert migrate(conninfo) == []
    found = connection.execute("select from pg_extension where extname = 'vector'")
    assert found.rowcount == 1
