"""A database that was dumped and restored: what nobody may call is nobody's there, either."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from pgqueue_embed.db.migrate import migrate, open_functions
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.doctor import Mark
from pgqueue_embed.doctor.database import check_rights
from pgqueue_embed.local_server import LocalServer
from pgqueue_embed.queue.capture import install
from tests.conftest import Administrator, database_conninfo
from tests.support.corpus import make_source, texts
from tests.support.pipelines import make_pipeline

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def options_of_the_recipe(program: str) -> list[str]:
    """Return the options that the documentation gives the program for a move."""
    (line,) = re.findall(rf"^\$bin/{program} (.*)$", OPERATIONS.read_text(), re.MULTILINE)
    return [word for word in line.split() if word.startswith("--") and "dbname" not in word]


def move(server: LocalServer, source: str, target: str, *options: str) -> None:
    """Dump one database into another, with `options` besides those of the recipe."""
    folder = server._programs().folder
    dump = [*options_of_the_recipe("pg_dump"), *options, source]
    dumped = subprocess.run([folder / "pg_dump", *dump], capture_output=True, check=True).stdout
    restore: list[str | Path] = [
        folder / "pg_restore",
        *options_of_the_recipe("pg_restore"),
        "--dbname",
        target,
    ]
    subprocess.run(restore, input=dumped, capture_output=True, check=True)


@pytest.fixture
def moved(
    server: LocalServer, administrator: Administrator, conninfo: str, connection: Connection
) -> Iterator[str]:
    """A database with a captured source, and an empty one beside it with the extension."""
    make_source(connection, texts(3))
    install(connection, make_pipeline(connection))
    name = f"{connection.info.dbname}_moved"
    administrator.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    target = database_conninfo(server, name)
    with psycopg.connect(target, autocommit=True) as session:
        session.execute("create extension vector")
    yield target
    administrator.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def test_recipe_keeps_who_may_call_what(server: LocalServer, conninfo: str, moved: str) -> None:
    move(server, conninfo, moved)
    with connect(moved) as session:
        assert open_functions(session) == []


def test_rights_that_a_dump_forgot_are_told_of_and_taken_back(
    server: LocalServer, conninfo: str, moved: str
) -> None:
    move(server, conninfo, moved, "--no-privileges")
    with connect(moved) as session:
        names = [name for name, _ in open_functions(session)]
        assert "pgembed.enqueue(name text, keys text[], OUT queued bigint)" in names
        assert sum("capture_" in name for name in names) == 5
        told, *_ = check_rights(session)
        assert (told.mark, told.fix) == (Mark.FAILED, "run: pgembed migrate")
        assert migrate(moved) == []
        assert open_functions(session) == []
        session.execute("create role outsider_of_a_move")
        session.execute("grant usage on schema pgembed to outsider_of_a_move")
        allowed = "select has_function_privilege('outsider_of_a_move', %s, 'execute')"
        enqueue = "pgembed.enqueue(text, text[])"
        assert session.execute(allowed, (enqueue,)).fetchone() == (False,)
        session.execute("drop owned by outsider_of_a_move")
        session.execute("drop role outsider_of_a_move")
