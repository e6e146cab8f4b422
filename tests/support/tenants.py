"""Tables of a tenant, and code of his that would take its chance."""

from __future__ import annotations

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.capture import install
from tests.support.pipelines import make_pipeline

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
