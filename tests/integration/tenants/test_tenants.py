"""Tables of a role with fewer rights: none of its code runs with the rights of another.

The administrator, here a superuser, has set up a pipeline over a table of the tenant's. The code of
the tenant, wherever it lies in wait, looks whom it runs as, and makes the tenant a superuser if it
can.
"""

from __future__ import annotations

from contextlib import suppress

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgqueue_embed.db.session import Connection, connect
from tests.support.tenants import (
    EVIL,
    assert_nothing_was_stolen,
    make_captured,
    make_docs,
)


def test_code_of_the_tenant_would_take_its_chance(
    connection: Connection, tenant: Connection
) -> None:
    tenant.execute(EVIL)
    connection.execute("select '1'::shop.evil::text")
    with pytest.raises(AssertionError):
        assert_nothing_was_stolen(connection)


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
