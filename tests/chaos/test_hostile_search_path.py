"""What others put on the search path is never picked up: not their tables, functions, operators."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

import pgqueue_embed
from pgqueue_embed.connect import Connection, connect
from pgqueue_embed.enqueue import Selection, enqueue
from pgqueue_embed.failures import retry
from pgqueue_embed.history import ROLL_UP
from pgqueue_embed.pipelines import load_pipeline
from pgqueue_embed.registry import sweep
from pgqueue_embed.settings import Table
from tests.support.corpus import make_source, texts
from tests.support.fakes import POISON
from tests.support.light import light_process
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.working import drain, open_session

OPERATORS = ("=", "<>", "<", ">", "<=", ">=", "||", "+", "-", "*", "/")
TYPES = (
    *("text", "varchar", "name", "int2", "int4", "int8", "numeric", "float8", "bytea"),
    *("bool", "uuid", "timestamptz", "interval", "xid8", "text[]", "int8[]"),
)
TABLES = (
    "work",
    "records",
    "pipelines",
    "attempts",
    "pg_class",
    "pg_namespace",
    "pg_stat_activity",
)

VIEWS = ("progress", "worker_status", "in_flight", "dead_letters")
SECURITY = Path(__file__).parents[2] / "docs" / "security.md"

# What no worker's role may do.
FORBIDDEN = (
    "create table public.mine ()",
    "alter table pgembed.work add column mine int",
    "update public.event_text set foi_text = ''",
    "delete from public.event_text",
    "truncate public.event_text_vectors",
    "update pgembed.pipelines set model_fingerprint = 'mine'",
    "delete from pgembed.pipelines",
)

HIJACK = """
create function hostile.hijacked() returns void language plpgsql as $$
begin
    raise exception 'a hostile object was used';
end $$
"""


def known_functions(connection: Connection) -> list[str]:
    """Return the names of PostgreSQL's functions that occur in the program's text."""
    folder = Path(pgqueue_embed.__file__).parent
    source = "\n".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.py"))
    words = sorted(set(re.findall(r"\b([a-z_0-9]+)\(", source)))
    query = "select distinct proname from pg_proc where proname = any(%s) and prokind = 'f'"
    return sorted(name for (name,) in connection.execute(query, (words,)))


def make_hostile(connection: Connection) -> int:
    """Put a schema with better matches for many calls on everybody's path; returns how many."""
    connection.execute("create schema hostile")
    connection.execute(HIJACK)
    signatures = [*((one,) for one in TYPES), *product(TYPES, TYPES)]
    statements = [
        *_functions(known_functions(connection), signatures),
        *_operators(),
        *(f"create table hostile.{name} ()" for name in TABLES),
    ]
    made = sum(_try(connection, statement) for statement in statements)
    name = sql.Identifier(connection.info.dbname)
    path = sql.SQL("alter database {} set search_path to hostile, public").format(name)
    connection.execute(path)
    return made


def _functions(names: list[str], signatures: list[tuple[str, ...]]) -> list[str]:
    return [
        f'create function hostile."{name}"({", ".join(types)}) returns text language plpgsql'
        " as $$ begin perform hostile.hijacked(); return null; end $$"
        for name in names
        for types in signatures
    ]


def _operators() -> list[str]:
    statements = []
    for number, (operator, left, right) in enumerate(product(OPERATORS, TYPES, TYPES)):
        result = "bool" if operator in ("=", "<>", "<", ">", "<=", ">=") else left
        statements.append(
            f"create function hostile.op{number}({left}, {right}) returns {result}"
            " language plpgsql as $$ begin perform hostile.hijacked(); return null; end $$;"
            f"create operator hostile.{operator}"
            f" (leftarg = {left}, rightarg = {right}, function = hostile.op{number})"
        )
    return statements


def _try(connection: Connection, statement: str) -> bool:
    try:
        connection.execute(statement)
    except psycopg.Error:
        return False
    return True


def security_block(mark: str) -> str:
    """Return the SQL that docs/security.md has behind the comment ``<!-- mark … -->``."""
    text = SECURITY.read_text(encoding="utf-8")
    found = re.search(rf"<!-- {mark}: .*? -->\n```sql\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert found, f"security.md has no block {mark}"
    return found[1]


@pytest.fixture
def worker_conninfo(connection: Connection, conninfo: str) -> Iterator[str]:
    """The way in of a machine's role that is set up as docs/security.md says."""
    names = {"table": "event_text", "id_field": "mdr_text_key", "text_field": "foi_text"}
    source = make_source(connection, [*texts(40, chunks=2), None, POISON], **names)
    make_pipeline(
        connection,
        source,
        target=Table(schema="public", name="event_text_vectors"),
        id_field="mdr_text_key",
        text_field="foi_text",
        max_attempts=1,
    )
    connection.execute(security_block("roles"))
    connection.execute(security_block("machine"))
    yield make_conninfo(conninfo, user="mac_one", password="choose one")
    roles = "mac_one, pgembed_worker, pgembed_admin, pgembed_viewer"
    connection.execute(f"drop owned by {roles}; drop role {roles}")


def test_worker_role_does_the_whole_job_beside_hostile_objects_on_the_search_path(
    connection: Connection, worker_conninfo: str, tmp_path: Path
) -> None:
    assert make_hostile(connection) > 1000
    with connect(worker_conninfo) as role:
        pipeline = load_pipeline(role, "reports")
        enqueue(role, pipeline, Selection(), slice_records=10)
        with light_process(worker_conninfo, tmp_path) as worker:
            assert worker.wait() == 0, worker.log()[-3000:]
        connection.execute("delete from public.event_text where mdr_text_key < 3")
        enqueue(role, pipeline, Selection())
        retry(role, pipeline)
        with open_session(worker_conninfo) as session:
            drain(session, pipeline)
        sweep(role)
        role.execute(ROLL_UP, {"pipeline_id": pipeline.id})
        for forbidden in FORBIDDEN:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                role.execute(forbidden)
    assert_converged(connection, "reports")


def test_viewer_sees_the_views_and_nothing_else(
    connection: Connection, worker_conninfo: str
) -> None:
    del worker_conninfo
    connection.execute("set role pgembed_viewer")
    for view in VIEWS:
        connection.execute(f"select * from pgembed.{view}")
    for table in ("pgembed.work", "pgembed.records", "public.event_text_vectors"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(f"select * from {table}")
    connection.execute("reset role")


def test_views_use_nothing_of_a_hostile_search_path(connection: Connection, conninfo: str) -> None:
    make_source(connection, texts(5))
    make_pipeline(connection)
    make_hostile(connection)
    with connect(conninfo) as user:
        with pytest.raises(psycopg.errors.RaiseException, match="hostile"):
            user.execute("select 1::int4 || 'a'::varchar")
        for view in VIEWS:
            user.execute(f"select * from pgembed.{view}")
