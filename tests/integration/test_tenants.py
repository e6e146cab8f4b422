"""Tables of a role with fewer rights: none of its code runs with the rights of another.

The administrator, here a superuser, has set up a pipeline over a table of the tenant's. The code of
the tenant, wherever it lies in wait, looks whom it runs as, and makes the tenant a superuser if it
can.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgqueue_embed.adopt import adopt_records, attach_table
from pgqueue_embed.adopt.judge import Judge
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.doctor.pipeline import check_tables
from pgqueue_embed.errors import PgembedError, PipelineFault, UntrustedCode, UsageError
from pgqueue_embed.lifecycle.alter import Changes, alter
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.capture import install
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.source.trust import is_anything_untrusted, look
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.record import read_record
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support import adopting
from tests.support.corpus import make_source
from tests.support.fakes import unit_vector
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.working import drain, open_session, work_once

DOCS = Table(schema="shop", name="docs")
NOTE = """
create function shop.note() returns void language plpgsql as $$ begin
    if exists (select from pg_roles where rolname = current_user and rolsuper) then
        execute 'alter role tenant superuser';
    end if;
end $$;
"""
EVIL = """
create type shop.evil as enum ('1', '2', '3', '4', 'Pump', 'another', 'changed');
create function shop.steal(shop.evil) returns text language plpgsql as $$ begin
    perform shop.note();
    return '1';
end $$;
create cast (shop.evil as text) with function shop.steal(shop.evil) as assignment;
create function shop.json_of(shop.evil) returns json language plpgsql as $$ begin
    perform shop.note(); return '1'::json;
end $$;
create cast (shop.evil as json) with function shop.json_of(shop.evil);
create function shop.same(shop.evil, shop.evil) returns bool language plpgsql as $$ begin
    perform shop.note(); return true;
end $$;
create operator shop.= (leftarg = shop.evil, rightarg = shop.evil, function = shop.same);
create operator shop.<> (leftarg = shop.evil, rightarg = shop.evil, function = shop.same);
create domain shop.over_evil as shop.evil check (shop.same(value, value));
"""


@pytest.fixture
def tenant(conninfo: str, connection: Connection) -> Iterator[Connection]:
    """A role that owns schema shop and its tables, and nothing else."""
    connection.execute("create role tenant login password 'of-a-role'")
    connection.execute("create schema shop authorization tenant")
    connection.execute("grant usage on schema pgembed to tenant")
    with connect(make_conninfo(conninfo, user="tenant", password="of-a-role")) as session:
        session.execute(NOTE)
        yield session
    connection.execute("drop owned by tenant cascade; drop role tenant")


def test_code_of_the_tenant_would_take_its_chance(
    connection: Connection, tenant: Connection
) -> None:
    tenant.execute(EVIL)
    connection.execute("select '1'::shop.evil::text")
    with pytest.raises(AssertionError):
        assert_nothing_was_stolen(connection)


def assert_nothing_was_stolen(connection: Connection) -> None:
    query = "select rolsuper from pg_roles where rolname = 'tenant'"
    assert connection.execute(query).fetchone() == (False,)


def make_docs(tenant: Connection, columns: str = "id bigint primary key, body text") -> None:
    tenant.execute(f"create table shop.docs ({columns})")
    tenant.execute("create table shop.child () inherits (shop.docs)")
    tenant.execute("insert into shop.docs (id, body) values (1, 'Pump')")


def make_captured(connection: Connection, **fields: object) -> Pipeline:
    pipeline = make_pipeline(
        connection,
        DOCS,
        target=Table(schema="public", name="docs_vectors"),
        **fields,  # type: ignore[arg-type]
    )
    install(connection, pipeline)
    return pipeline


WRITES = """
insert into {table} (id, body) values ('2', 'another');
update {table} set body = 'changed' where body = 'Pump';
update {table} set id = '4' where body = 'another';
delete from {table} where body = 'changed'
"""

# What the tenant makes of the table before he writes to it.
SWAPS = {
    "an enum with a cast": (
        "alter table shop.docs alter id type shop.evil using (id::text)::shop.evil",
        "shop.docs",
    ),
    "a domain over it": (
        "alter table shop.docs alter id type shop.over_evil using (id::text)::shop.over_evil",
        "shop.docs",
    ),
    "a column that takes the key's name": (
        "alter table shop.docs drop constraint docs_pkey, alter id drop not null;"
        "alter table shop.docs rename id to former;"
        "alter table shop.docs add id shop.evil; update shop.docs set id = '1'",
        "shop.docs",
    ),
    "a child that inherits": (
        "alter table shop.docs alter id type shop.evil using (id::text)::shop.evil",
        "shop.child",
    ),
    "a composite type": (
        "create type shop.pair as (evil shop.evil);"
        "create function shop.pair_text(shop.pair) returns text language plpgsql as"
        " $$ begin perform shop.note(); return 'x'; end $$;"
        "create cast (shop.pair as text) with function shop.pair_text(shop.pair);"
        "alter table shop.docs alter id type shop.pair using row((id::text)::shop.evil)::shop.pair",
        "shop.docs",
    ),
    "a watched column of the type": (
        "alter table shop.docs alter body type shop.evil using (body::text)::shop.evil,"
        " alter id type text",
        "shop.docs",
    ),
}


@pytest.mark.on_both_servers
@pytest.mark.parametrize("role", ["origin", "replica"])
@pytest.mark.parametrize("swap", SWAPS)
def test_capture_runs_no_code_of_the_owner(
    connection: Connection, tenant: Connection, swap: str, role: str
) -> None:
    make_docs(tenant)
    make_captured(connection)
    tenant.execute(EVIL)
    statement, table = SWAPS[swap]
    tenant.execute(statement)
    connection.execute("grant set on parameter session_replication_role to tenant")
    tenant.execute(f"set session_replication_role = {role}")
    for write in WRITES.format(table=table).split(";"):
        with suppress(psycopg.errors.DataError):  # not every type has such values
            tenant.execute(write)
    assert_nothing_was_stolen(connection)
    (queued,) = connection.execute("select count(*) from pgembed.work").fetchone() or (0,)
    assert queued, "what cannot be told by keys is queued as a comparison of everything"


def test_old_snapshot_of_the_writer_does_not_hide_the_new_type(
    conninfo: str, connection: Connection, tenant: Connection
) -> None:
    """The catalogue, read under it, still says that the column is a bigint."""
    make_docs(tenant)
    make_captured(connection)
    tenant.execute(EVIL)
    login = make_conninfo(conninfo, user="tenant", password="of-a-role")
    with connect(login) as writer:
        writer.execute("begin isolation level repeatable read")
        writer.execute("select count(*) from pg_class")
        tenant.execute("alter table shop.docs alter id type shop.evil using '1'::shop.evil")
        writer.execute("insert into shop.docs values ('2', 'another')")
        writer.execute("commit")
    assert_nothing_was_stolen(connection)


def test_composite_key_runs_no_code_of_the_owner(
    connection: Connection, tenant: Connection
) -> None:
    make_docs(tenant, "id bigint, part text default 'a', body text, primary key (id, part)")
    make_captured(connection, id_fields=("id", "part"))
    tenant.execute(EVIL)
    tenant.execute("alter table shop.docs alter part drop default")
    tenant.execute("alter table shop.docs alter part type shop.evil using '1'::shop.evil")
    tenant.execute("insert into shop.docs values (2, '2', 'another')")
    tenant.execute("update shop.docs set body = 'changed'")
    assert_nothing_was_stolen(connection)


def test_key_that_becomes_wider_is_captured_as_ever(
    connection: Connection, tenant: Connection
) -> None:
    make_docs(tenant, "id int primary key, body text")
    make_captured(connection)
    tenant.execute("alter table shop.docs alter id type bigint")
    tenant.execute("insert into shop.docs values (3000000000, 'beyond')")
    keys = connection.execute("select keys from pgembed.work").fetchall()
    assert keys == [(["3000000000"],)]


# What runs with the rights of whoever reads or writes

COLUMNS = "id bigint primary key, body text"
PLAIN = f"create table shop.docs ({COLUMNS}); insert into shop.docs values (1, 'Pump')"
FUNCTION = """
create function shop.trap(value text) returns text immutable language plpgsql as $$ begin
    perform shop.note();
    return value;
end $$;
create function shop.trap() returns trigger language plpgsql as $$ begin
    perform shop.note();
    return new;
end $$;
"""

# What the tenant's table is, and what of it is named.
READ = {
    "a view": (
        "create table shop.base (id bigint primary key, body text);"
        "create view shop.docs as select id, shop.trap(body) as body from shop.base",
        "view shop.docs",
    ),
    "an enum with a cast": (
        "create table shop.docs (id bigint primary key, body text, kind shop.evil)",
        "type shop.evil",
    ),
    "a domain over it": (
        "create table shop.docs (id bigint primary key, body text, kind shop.over_evil)",
        "type shop.evil",
    ),
    "an expression of an index": (
        f"{PLAIN}; alter table shop.docs add kind text;"
        "create index on shop.docs (shop.trap('constant'))",
        "function shop.trap",
    ),
    "a condition of an index": (
        f"{PLAIN}; alter table shop.docs add kind text;"
        "create index on shop.docs (id) where shop.trap('constant') = body",
        "function shop.trap",
    ),
    "statistics": (
        f"{PLAIN}; alter table shop.docs add kind text;"
        "create statistics shop.more on (shop.trap('constant')), id from shop.docs",
        "function shop.trap",
    ),
}


@pytest.mark.on_both_servers
@pytest.mark.parametrize("trap", READ)
def test_pipeline_is_refused_where_code_of_the_owner_would_run(
    connection: Connection, tenant: Connection, trap: str
) -> None:
    tenant.execute(EVIL)
    tenant.execute(FUNCTION)
    statement, named = READ[trap]
    tenant.execute(statement)
    with pytest.raises(UsageError, match=named) as refused:
        make_docs_pipeline(connection, template="$body $kind" if "view" not in trap else "$body")
    assert "role tenant and would run with the rights of role" in str(refused.value)
    assert_nothing_was_stolen(connection)


def make_docs_pipeline(connection: Connection, **fields: object) -> Pipeline:
    target = Table(schema="public", name="docs_vectors")
    return make_pipeline(connection, DOCS, **{"target": target, **fields})  # type: ignore[arg-type]


# What becomes of a plain table later, and what is named.
LATER = {
    "a view in front": (
        "alter table shop.docs rename to base;"
        "create view shop.docs as select id, shop.trap(body) as body from shop.base",
        "view shop.docs",
    ),
    "another type of the text": (
        "alter table shop.docs alter body type shop.evil using (body::text)::shop.evil",
        "type shop.evil",
    ),
    "another type of the key": (
        "alter table shop.docs alter id type shop.evil using (id::text)::shop.evil",
        "type shop.evil",
    ),
    "an index": ("create index on shop.docs (shop.trap('constant'))", "function shop.trap"),
    "a foreign table": (
        "alter table shop.docs rename to base;"
        "create foreign table shop.docs (id bigint, body text) server elsewhere",
        "foreign table shop.docs",
    ),
}


@pytest.mark.parametrize("trap", LATER)
def test_nothing_reads_a_table_that_has_become_a_trap(
    conninfo: str, connection: Connection, tenant: Connection, trap: str
) -> None:
    tenant.execute(PLAIN)
    connection.execute("create foreign data wrapper afar")
    connection.execute("create server elsewhere foreign data wrapper afar")
    connection.execute("grant usage on foreign server elsewhere to tenant")
    pipeline = make_docs_pipeline(connection)
    enqueue(connection, pipeline, Selection())
    tenant.execute(EVIL)
    tenant.execute(FUNCTION)
    statement, named = LATER[trap]
    tenant.execute(statement)
    for use in (
        lambda: enqueue(connection, pipeline, Selection()),
        lambda: enqueue(connection, pipeline, Selection(where="id > 0")),
        lambda: install(connection, pipeline),
        lambda: list(check_tables(connection, pipeline)),
    ):
        with pytest.raises(PgembedError, match=f"{named}|whose changes no trigger sees"):
            use()
    with open_session(conninfo) as session, pytest.raises(PipelineFault, match=named):
        work_once(session, pipeline)
    connection.execute("select pgembed.queue_comparison(%s)", (pipeline.id,))
    connection.execute("delete from pgembed.work where records > 0")
    with open_session(conninfo) as session, pytest.raises(PipelineFault, match=named):
        work_once(session, pipeline)
    assert_nothing_was_stolen(connection)


@pytest.mark.parametrize("change", ["trigger", "default", "domain", "rule"])
def test_nothing_writes_a_table_of_the_tenant_that_has_become_a_trap(
    conninfo: str, connection: Connection, tenant: Connection, change: str
) -> None:
    tenant.execute(PLAIN)
    connection.execute("alter role tenant set search_path = public")
    pipeline = make_docs_pipeline(
        connection,
        into_column="embedding",
        chunking="none",
        target=DOCS,
    )
    enqueue(connection, pipeline, Selection())
    tenant.execute(FUNCTION)
    tenant.execute(
        {
            "trigger": "create trigger trap before update on shop.docs"
            " for each row execute function shop.trap()",
            "default": "alter table shop.docs add more text default shop.trap('x')",
            "domain": "create domain shop.checked as text check (shop.trap(value) <> 'no');"
            "alter table shop.docs add more shop.checked",
            "rule": "create rule trap as on update to shop.docs do also select shop.trap('x')",
        }[change]
    )
    with open_session(conninfo) as session, pytest.raises(PipelineFault, match="role tenant"):
        work_once(session, pipeline)
    assert_nothing_was_stolen(connection)


# What the tenant hangs on a target that he owns: its chunks go, and a foreign key leads elsewhere.
BEYOND = {
    "a trigger that waits for the commit": """
        create table shop.notes (chunk bigint references shop.chunks (id) on delete cascade);
        create constraint trigger trap after delete on shop.notes deferrable initially deferred
            for each row execute function shop.trap()
        """,
    "a trigger that sets the search path": """
        create function shop.lead() returns trigger language plpgsql as $$ begin
            perform set_config('search_path', 'shop, pg_catalog', false);
            return old;
        end $$;
        create table shop.notes (chunk bigint references shop.chunks (id) on delete set null);
        create trigger trap before update on shop.notes
            for each row execute function shop.lead()
        """,
    "a second step": """
        create table shop.notes (
            id bigint unique default 1, chunk bigint references shop.chunks (id) on delete cascade
        );
        create table shop.more (note bigint references shop.notes (id) on delete cascade);
        create constraint trigger trap after delete on shop.more deferrable initially deferred
            for each row execute function shop.trap()
        """,
    "an index of a table that only looks": """
        create table shop.notes (chunk bigint references shop.chunks (id));
        create index on shop.notes (shop.trap('constant'))
        """,
    "an index of the table that it names": """
        create table shop.kinds (id bigint primary key);
        create index on shop.kinds (shop.trap('constant'));
        alter table shop.chunks add kind bigint references shop.kinds
        """,
}


@pytest.mark.on_both_servers
@pytest.mark.parametrize("trap", BEYOND)
def test_foreign_keys_lead_to_no_code_of_the_tenant(
    conninfo: str, connection: Connection, tenant: Connection, trap: str
) -> None:
    tenant.execute(PLAIN)
    target = Table(schema="shop", name="chunks")
    pipeline = make_docs_pipeline(connection, target=target)
    connection.execute("alter table shop.chunks owner to tenant")
    enqueue(connection, pipeline, Selection())
    with open_session(conninfo) as session:
        drain(session, pipeline)
    tenant.execute(FUNCTION)
    tenant.execute(BEYOND[trap])
    tenant.execute("update shop.docs set body = 'changed'")
    connection.execute("select pgembed.enqueue('reports', array['1'])")
    with open_session(conninfo) as session, pytest.raises(PipelineFault, match="role tenant"):
        work_once(session, pipeline)
    assert_nothing_was_stolen(connection)


def test_view_of_the_administrator_over_tables_of_the_tenant_runs_none_of_their_constraints(
    conninfo: str, connection: Connection, tenant: Connection
) -> None:
    """PostgreSQL would plan a UNION ALL with them, and run what is immutable in them."""
    tenant.execute(FUNCTION)
    for name in ("shop.one", "shop.two"):
        tenant.execute(
            f"create table {name} ({COLUMNS}, check (shop.trap('constant') <> body));"
            f"insert into {name} values (length('{name}'), 'Pump') on conflict do nothing"
        )
    connection.execute(
        "create view public.docs as"
        " select id, body from shop.one union all select id + 1, body from shop.two"
    )
    source = Table(schema="public", name="docs")
    pipeline = make_pipeline(connection, source, target=Table(schema="public", name="vectors"))
    enqueue(connection, pipeline, Selection(where="body <> 'constant'"))
    with open_session(conninfo) as session:
        drain(session, pipeline)
    assert_converged(connection, "reports")
    assert_nothing_was_stolen(connection)


def test_drop_empties_no_column_of_a_table_that_has_become_a_trap(
    connection: Connection, tenant: Connection
) -> None:
    tenant.execute(f"create table shop.docs ({COLUMNS}, embedding public.vector(8))")
    pipeline = make_docs_pipeline(
        connection, into_column="embedding", chunking="none", target=DOCS, dimensions=8
    )
    tenant.execute(FUNCTION)
    tenant.execute(
        "insert into shop.docs values (1, 'Pump', '[1,0,0,0,0,0,0,0]');"
        "create trigger trap before update on shop.docs"
        " for each row execute function shop.trap()"
    )
    with pytest.raises(UntrustedCode, match="role tenant"):
        drop_pipeline(connection, pipeline, delete_vectors=True)
    assert_nothing_was_stolen(connection)
    drop_pipeline(connection, pipeline, delete_vectors=False)


def test_adoption_writes_no_table_that_becomes_a_trap_while_it_is_judged(
    connection: Connection, tenant: Connection
) -> None:
    source = make_source(connection, ["Pump"])
    adopting.make_vectors(connection, [(1, "Pump", None)])
    connection.execute("alter table public.vectors owner to tenant")
    candidate = adopting.candidate_of(connection, source)
    pipeline = attach_table(connection, candidate, ())
    tenant.execute(FUNCTION)

    class SettingTraps(Judge):
        def judge(self, *read: Any) -> Any:
            tenant.execute(
                "create trigger trap before update on public.vectors"
                " for each row execute function shop.trap()"
            )
            return super().judge(*read)

    judge = candidate.judge()
    judge.__class__ = SettingTraps
    with pytest.raises(PgembedError, match="role tenant"):
        adopt_records(connection, pipeline, judge)
    assert_nothing_was_stolen(connection)


def test_search_runs_no_code_of_whoever_owns_the_target_now(
    connection: Connection, tenant: Connection
) -> None:
    make_source(connection, ["Pump"])
    target = Table(schema="shop", name="chunks")
    pipeline = make_pipeline(connection, target=target)
    search(connection, pipeline, unit_vector("pump"), SearchRequest(limit=5, threshold=-1))
    tenant.execute(FUNCTION)
    connection.execute("alter table shop.chunks owner to tenant")
    search(connection, pipeline, unit_vector("pump"), SearchRequest(limit=5, threshold=-1))
    tenant.execute(
        "alter table shop.chunks rename to base; create view shop.chunks as select * from shop.base"
    )
    with pytest.raises(UntrustedCode, match=r"view shop.chunks is of role tenant"):
        search(connection, pipeline, unit_vector("pump"), SearchRequest(limit=5, threshold=-1))


def test_search_that_reads_texts_from_the_source_runs_no_code_of_its_owner(
    connection: Connection, tenant: Connection
) -> None:
    tenant.execute(PLAIN)
    tenant.execute(FUNCTION)
    request = SearchRequest(limit=5, threshold=-1)
    pipeline = make_docs_pipeline(connection, text=False)
    search(connection, pipeline, unit_vector("pump"), request)
    becomes_a_view, named = LATER["a view in front"]
    tenant.execute(becomes_a_view)
    with pytest.raises(UntrustedCode, match=named):
        search(connection, pipeline, unit_vector("pump"), request)
    with pytest.raises(UntrustedCode, match=named):
        read_record(connection, pipeline, "1")
    assert_nothing_was_stolen(connection)


@pytest.mark.parametrize(
    "where",
    [
        "shop.trap(body) <> 'x'",
        '"shop" . "trap"(body) <> \'x\'',
        "body operator(shop.===) 'x'",
        "source::text <> 'x'",
        "exists (select from shop.docs as other where other.id = source.id"
        " and shop.trap('x') = '')",
    ],
)
def test_condition_that_names_code_of_the_tenant_is_refused(
    connection: Connection, tenant: Connection, where: str
) -> None:
    tenant.execute(PLAIN)
    tenant.execute(FUNCTION)
    tenant.execute(
        """
        create function shop.differs(text, text) returns bool language sql as 'select true';
        create operator shop.=== (leftarg = text, rightarg = text, function = shop.differs)
        """
    )
    pipeline = make_docs_pipeline(connection)
    with pytest.raises(UntrustedCode, match="role tenant"):
        enqueue(connection, pipeline, Selection(where=where))
    with pytest.raises(UntrustedCode, match="role tenant"):
        make_docs_pipeline(connection, name="other", where=where)
    assert_nothing_was_stolen(connection)


def test_plain_table_of_the_tenant_is_embedded_as_ever(
    conninfo: str, connection: Connection, tenant: Connection
) -> None:
    """With what the tenant's own writes run, and a type that is not read."""
    tenant.execute(FUNCTION)
    tenant.execute(EVIL)
    tenant.execute(
        """
        create domain shop.number as bigint check (shop.trap(value::text) <> '0');
        create table shop.docs (
            id shop.number primary key,
            body text check (shop.trap(body) is not null),
            kind shop.evil,
            more text default shop.trap('more'),
            check (shop.trap('constant') <> body)
        );
        create table shop.child (check (shop.trap('constant') <> body)) inherits (shop.docs);
        create trigger trap before insert or update on shop.docs
            for each row execute function shop.trap();
        insert into shop.docs (id, body) values (1, 'Pump'), (2, 'Valve')
        """
    )
    pipeline = make_captured(connection)
    enqueue(connection, pipeline, Selection(where="id > 0"))
    with open_session(conninfo) as session:
        drain(session, pipeline)
        tenant.execute("update shop.docs set body = 'changed' where id = 2")
        drain(session, pipeline)
    assert_converged(connection, "reports")
    assert_nothing_was_stolen(connection)


def test_owner_who_is_trusted_or_has_the_same_rights_is_not_refused(
    connection: Connection, tenant: Connection, conninfo: str
) -> None:
    tenant.execute("create table shop.base (id bigint primary key, body text)")
    tenant.execute("create view shop.docs as select * from shop.base")
    pipeline = make_docs_pipeline(connection, trust_owners=True)
    enqueue(connection, pipeline, Selection())
    alter(connection, pipeline, Changes(trust_owners=False))
    pipeline = load_pipeline(connection, "reports")
    with pytest.raises(UntrustedCode):
        enqueue(connection, pipeline, Selection())
    connection.execute("grant insert on pgembed.pipelines to tenant")
    enqueue(connection, pipeline, Selection())
    connection.execute("revoke insert on pgembed.pipelines from tenant")
    connection.execute("grant all on all tables in schema pgembed to tenant")
    tenant.execute("reset role")
    enqueue(tenant, pipeline, Selection())


@pytest.fixture
def stranger(connection: Connection) -> Iterator[None]:
    """A role that owns nothing."""
    connection.execute("create role stranger login")
    yield
    connection.execute(f"alter database {connection.info.dbname} owner to current_user")
    connection.execute("drop owned by stranger cascade; drop role stranger")


@pytest.mark.usefixtures("stranger")
@pytest.mark.parametrize("owner", ["stranger", "pg_monitor", "pg_database_owner"])
def test_code_is_found_whichever_role_it_belongs_to(connection: Connection, owner: str) -> None:
    """Also where PostgreSQL keeps no note of the owner: what its own roles have."""
    connection.execute("create function yes() returns bool language sql as 'select true'")
    pipeline = make_pipeline(connection, make_source(connection, []), where="public.yes()")
    assert not is_anything_untrusted(connection)
    if owner == "pg_monitor":
        connection.execute("grant pg_monitor to stranger")
    if owner == "pg_database_owner":
        connection.execute(f"alter database {connection.info.dbname} owner to stranger")
    connection.execute(f"alter function yes() owner to {owner}")
    with pytest.raises(UntrustedCode, match=f"of role {owner} "):
        look(connection, pipeline.spec)


def test_table_of_anybody_that_is_called_pipelines_is_not_asked_for_rights(
    connection: Connection,
) -> None:
    connection.execute("create table public.pipelines (id bigint)")
    # In the order in which the query names them, whatever is known of their sizes.
    connection.execute("set join_collapse_limit = 1")
    assert not is_anything_untrusted(connection)
