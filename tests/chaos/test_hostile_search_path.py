"""Tables, functions and operators that others put on the search path are never used."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

import pgqueue_embed
from pgqueue_embed.db.migrate import migrations_folder
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import PgembedError, UsageError
from pgqueue_embed.ledger.commits import ROLL_UP
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.local_server import LocalServer
from pgqueue_embed.monitoring.snapshot import read_snapshot
from pgqueue_embed.pipeline.catalog import load_pipeline, pause_pipeline, resume_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.dead_letters import read_failures, retry
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.queue.housekeeping import clean_up
from pgqueue_embed.vector_search.index import vector_indexes
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.request import SearchRequest
from pgqueue_embed.worker.crashes import record_crash
from tests.support.commands import pgembed
from tests.support.corpus import make_source, set_text, texts
from tests.support.fakes import POISON, unit_vector
from tests.support.light import light_process
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.working import drain, open_session

OPERATORS = ("=", "<>", "<", ">", "<=", ">=", "||", "+", "-", "*", "/", "->>")
TYPES = (
    *("text", "varchar", "name", "int2", "int4", "int8", "numeric", "float8", "bytea", "bool"),
    *("uuid", "timestamptz", "interval", "xid8", "jsonb", "text[]", "int4[]", "int8[]", "bool[]"),
)
DOMAINS = ("text", "name", "bytea", "uuid", "timestamptz", "xid8", "jsonb", "regclass")
TABLES = (
    *("work", "records", "pipelines", "attempts"),
    *("pg_class", "pg_namespace", "pg_attribute", "pg_type", "pg_stat_activity", "pg_extension"),
)

VIEWS = (
    *("progress", "worker_status", "in_flight", "dead_letters", "failure_groups", "events"),
    *("history", "recent_history", "vector_indexes"),
)
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

# One block for all: thousands of objects, each of which may turn out to be impossible.
MAKE_HOSTILE = """
create schema hostile;
create function hostile.hijacked() returns void language plpgsql as $$
begin
    raise exception 'a hostile object was used';
end $$;
create function hostile.make(statements text[]) returns integer language plpgsql as $$
declare
    statement text;
    made integer := 0;
begin
    foreach statement in array statements loop
        begin
            execute statement;
            made := made + 1;
        exception when others then
            null;
        end;
    end loop;
    return made;
end $$;
"""

BODY = "language plpgsql as $$ begin perform hostile.hijacked(); return null; end $$"


def known_functions(connection: Connection) -> list[str]:
    """Return the names of PostgreSQL's functions that occur in the program's text."""
    files = [*Path(pgqueue_embed.__file__).parent.rglob("*.py"), *migrations_folder().glob("*.sql")]
    source = "\n".join(path.read_text(encoding="utf-8") for path in files)
    words = sorted(set(re.findall(r"\b([a-z_0-9]+)\(", source)))
    query = "select distinct proname from pg_proc where proname = any(%s)"
    return sorted(name for (name,) in connection.execute(query, (words,)))


def make_hostile(connection: Connection) -> int:
    """Make a schema with better matches for all calls; returns how many."""
    connection.execute(MAKE_HOSTILE)
    signatures = [(), *((one,) for one in TYPES), *product(TYPES, TYPES)]
    statements = [
        *_functions(known_functions(connection), signatures),
        *_operators(),
        *(f"create table hostile.{name} ()" for name in TABLES),
        *(f"create domain hostile.{name} as int8range" for name in DOMAINS),
    ]
    (made,) = connection.execute("select hostile.make(%s)", (statements,)).fetchone() or (0,)
    return int(made)


def look_there_first(connection: Connection) -> None:
    """Put the hostile schema before all others, PostgreSQL's own included."""
    name = sql.Identifier(connection.info.dbname)
    path = sql.SQL("alter database {} set search_path to hostile, pg_catalog, public").format(name)
    connection.execute(path)


def _functions(names: list[str], signatures: list[tuple[str, ...]]) -> list[str]:
    return [
        f'create function hostile."{name}"({", ".join(types)}) returns text {BODY}'
        for name in names
        for types in signatures
    ]


def _operators() -> list[str]:
    statements = []
    for number, (operator, left, right) in enumerate(product(OPERATORS, TYPES, TYPES)):
        result = "bool" if operator in ("=", "<>", "<", ">", "<=", ">=") else left
        statements.append(
            f"create function hostile.op{number}({left}, {right}) returns {result} {BODY};"
            f"create operator hostile.{operator}"
            f" (leftarg = {left}, rightarg = {right}, function = hostile.op{number})"
        )
    return statements


def security_block(mark: str) -> str:
    """Return the SQL that docs/security.md has behind the comment ``<!-- mark … -->``."""
    text = SECURITY.read_text(encoding="utf-8")
    found = re.search(rf"<!-- {mark}: .*? -->\n```sql\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert found, f"security.md has no block {mark}"
    return found[1]


ERRANDS: dict[str, Callable[[Connection, Pipeline], object]] = {
    "enqueue": lambda session, pipeline: enqueue(session, pipeline, Selection()),
    "enqueue all": lambda session, pipeline: enqueue(session, pipeline, Selection(everything=True)),
    "retry": lambda session, pipeline: retry(session, pipeline),
    "status": lambda session, pipeline: read_snapshot(session, pipeline.name),
    "failures": lambda session, pipeline: read_failures(session, pipeline.name, limit=5),
    "search": lambda session, pipeline: search(
        session, pipeline, unit_vector("pump"), SearchRequest(limit=5, threshold=-1)
    ),
    "create": lambda session, _: make_pipeline(
        session, Table(schema="public", name="more"), name="more"
    ),
    "index": lambda session, pipeline: vector_indexes(session, pipeline),
    "enqueue keys": lambda session, pipeline: session.execute(
        "select pgembed.enqueue(name, array['1', '2']) from pgembed.pipelines where id = %s",
        (pipeline.id,),
    ),
    "pause and resume": lambda session, pipeline: (
        pause_pipeline(session, pipeline, "a test"),
        resume_pipeline(session, pipeline),
    ),
    "sweep": lambda session, _: clean_up(session),
    "roll up": lambda session, pipeline: session.execute(ROLL_UP, {"pipeline_id": pipeline.id}),
    "diagnose a death": lambda session, _: record_crash(session, 1, "a test"),
    "drop": lambda session, pipeline: drop_pipeline(session, pipeline, delete_vectors=True),
}


def leave_path(connection: Connection) -> None:
    """Do what connecting would do without any care for the search path."""
    del connection


def pretend_pooled(connection: Connection) -> None:
    """Set the path for each transaction, as behind a pooler."""
    connection.pooled = True


# An attempt whose claim ended long ago.
ORPHAN = """
insert into pgembed.attempts (work_id, worker_id, claim_xid, started_at)
values (0, 0, pg_current_xact_id(), now() - interval '2 hours')
"""


@pytest.fixture
def beside_hostile(connection: Connection, conninfo: str) -> Pipeline:
    """A pipeline with work done, failed and pending, where hostile objects come first."""
    source = make_source(connection, [*texts(8, chunks=2), None, POISON])
    make_source(connection, texts(2), table="more")
    pipeline = make_pipeline(connection, source, max_attempts=1)
    with open_session(conninfo) as session:
        enqueue(connection, pipeline, Selection())
        drain(session, pipeline)
    set_text(connection, source, 1, "Changed.")
    connection.execute(ORPHAN)
    look_there_first(connection)
    return pipeline


@pytest.mark.parametrize("pin", [Connection.pin_settings, pretend_pooled])
def test_nothing_hostile_is_used(
    conninfo: str,
    beside_hostile: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    pin: Callable[[Connection], None],
) -> None:
    monkeypatch.setattr(Connection, "pin_settings", pin)
    with open_session(conninfo) as session:
        enqueue(session.side, beside_hostile, Selection())
        drain(session, beside_hostile)
        for errand in ERRANDS.values():
            errand(session.side, beside_hostile)


def test_every_errand_would_be_hijacked_without_the_pinned_path(
    conninfo: str, beside_hostile: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "pin_settings", leave_path)
    harmless = []
    with connect(conninfo) as session:
        for name, errand in ERRANDS.items():
            try:
                errand(session, beside_hostile)
            except (psycopg.Error, PgembedError):
                continue
            harmless.append(name)
    assert harmless == []


def test_names_in_a_condition_of_the_user_have_their_schema(
    connection: Connection, conninfo: str
) -> None:
    pipeline = make_pipeline(connection, make_source(connection, texts(5)))
    connection.execute("create schema mine")
    connection.execute("create function mine.third(bigint) returns bool return $1 = 3")
    connection.execute(f"alter database {connection.info.dbname} set search_path to mine")
    with connect(conninfo) as session:
        with pytest.raises(UsageError, match=r"third\(bigint\) does not exist; .* schema.name"):
            enqueue(session, pipeline, Selection(where="third(id)"))
        assert enqueue(session, pipeline, Selection(where="mine.third(id)")) == 1


@pytest.fixture(scope="module")
def template(server: LocalServer, templates: Callable[[LocalServer], str]) -> str:
    """The migrated database with the hostile schema in it, which nobody looks into yet."""
    name = "hostile_template"
    with psycopg.connect(server.conninfo(), autocommit=True) as session:
        session.execute(f"create database {name} template {templates(server)} strategy file_copy")
    with connect(make_conninfo(server.conninfo(), dbname=name)) as connection:
        assert make_hostile(connection) > 10_000
    return name


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
    look_there_first(connection)
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
        clean_up(role)
        role.execute(ROLL_UP, {"pipeline_id": pipeline.id})
        for forbidden in FORBIDDEN:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                role.execute(forbidden)
    assert_converged(connection, "reports")


def test_viewer_sees_the_views_and_nothing_else(
    connection: Connection, worker_conninfo: str
) -> None:
    connection.execute("set role pgembed_viewer")
    for view in VIEWS:
        connection.execute(f"select * from pgembed.{view}")
    (pipeline,) = read_snapshot(connection).pipelines
    assert pipeline.name == "reports"
    for table in ("pgembed.work", "pgembed.records", "public.event_text_vectors"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(f"select * from {table}")
    connection.execute("reset role")
    connection.execute("create role looker login password 'x' in role pgembed_viewer")
    looker = make_conninfo(worker_conninfo, user="looker", password="x")
    for words in (
        ["status"],
        ["failures", "reports"],
        ["failures", "reports", "--all"],
        ["metrics"],
    ):
        assert pgembed(looker, *words).exit_code == 0, words
    # Nothing was embedded yet, and nothing waits.
    assert pgembed(looker, "health").stdout.strip() == "ok"
    connection.execute("drop role looker")


def test_views_use_nothing_of_a_hostile_search_path(connection: Connection, conninfo: str) -> None:
    make_source(connection, texts(5))
    make_pipeline(connection)
    look_there_first(connection)
    with psycopg.connect(conninfo, autocommit=True) as user:
        with pytest.raises(psycopg.errors.RaiseException, match="hostile"):
            user.execute("select 1::int4 || 'a'::varchar")
        for view in VIEWS:
            user.execute(f"select * from pgembed.{view}")
