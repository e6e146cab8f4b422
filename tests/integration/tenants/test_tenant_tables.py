"""Tables of a tenant that are or become a trap, for who reads or writes them."""

from __future__ import annotations

import pytest

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.doctor.pipeline import check_tables
from pgqueue_embed.errors import PgembedError, PipelineFault, UntrustedCode, UsageError
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.queue.capture import install
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.tenants import (
    COLUMNS,
    DOCS,
    EVIL,
    FUNCTION,
    LATER,
    PLAIN,
    assert_nothing_was_stolen,
    make_docs_pipeline,
)
from tests.support.working import drain, open_session, work_once

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
