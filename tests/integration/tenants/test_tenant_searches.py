"""Searches, conditions and plain tables of a tenant, and who counts as one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pgqueue_embed.adopt import adopt_records, attach_table
from pgqueue_embed.adopt.judge import Judge
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import PgembedError, UntrustedCode
from pgqueue_embed.lifecycle.alter import Changes, alter
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.source.trust import check_trust, is_anything_untrusted
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.record import read_record
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support import adopting
from tests.support.corpus import make_source
from tests.support.fakes import unit_vector
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.tenants import (
    EVIL,
    FUNCTION,
    LATER,
    PLAIN,
    assert_nothing_was_stolen,
    make_captured,
    make_docs_pipeline,
)
from tests.support.working import drain, open_session


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
        check_trust(connection, pipeline.spec)


def test_table_of_anybody_that_is_called_pipelines_is_not_asked_for_rights(
    connection: Connection,
) -> None:
    connection.execute("create table public.pipelines (id bigint)")
    # In the order in which the query names them, whatever is known of their sizes.
    connection.execute("set join_collapse_limit = 1")
    assert not is_anything_untrusted(connection)
