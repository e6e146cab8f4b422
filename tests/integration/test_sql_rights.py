"""The functions for psql: who may call them, and that no rights are gained by them."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgqueue_embed.db.session import Connection, connect
from tests.support.corpus import make_source, texts
from tests.support.pipelines import make_pipeline


@pytest.fixture
def app(connection: Connection, conninfo: str) -> Iterator[Connection]:
    """A session of a role that may use schema pgembed and nothing in it, and make its own types."""
    make_source(connection, texts(1))
    make_pipeline(connection)
    connection.execute("create role program login password 'secret'")
    connection.execute("grant usage on schema pgembed to program")
    connection.execute("create schema of_app authorization program")
    with connect(make_conninfo(conninfo, user="program", password="secret")) as session:
        yield session
    connection.execute("drop owned by program cascade; drop role program")


def enqueue(session: Connection, keys: str) -> int:
    """Return how many of `keys`, which are SQL, were queued."""
    (queued,) = session.execute(f"select pgembed.enqueue('reports', {keys})").fetchone() or (0,)
    return int(queued)


GRANT = "grant execute on function pgembed.enqueue(text, text[]) to program"


@pytest.mark.parametrize("keys", ["'{1}'", "array['1']", "array[1]"])
def test_enqueue_is_granted_by_itself(connection: Connection, app: Connection, keys: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        enqueue(app, keys)
    connection.execute(GRANT)
    assert enqueue(app, keys) == 1
    assert connection.execute("select keys from pgembed.work").fetchall() == [(["1"],)]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        app.execute("select from pgembed.work")


@pytest.mark.parametrize("function", ["pause('reports')", "resume('reports')", "retry('reports')"])
def test_the_others_give_no_right(app: Connection, function: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        app.execute(f"select pgembed.{function}")


def test_a_cast_of_the_callers_own_runs_with_its_rights(
    connection: Connection, app: Connection
) -> None:
    connection.execute(GRANT)
    app.execute(
        """
        create table of_app.ran_as (name text);
        create type of_app.trap as (id int);
        create function of_app.spring(of_app.trap[]) returns text[] language plpgsql as $$
        begin
            insert into of_app.ran_as values (current_user);
            return array['1'];
        end $$;
        create cast (of_app.trap[] as text[]) with function of_app.spring(of_app.trap[])
        """
    )
    enqueue(app, "array[row(1)]::of_app.trap[]")
    assert app.execute("select name from of_app.ran_as").fetchall() == [("program",)]


def test_objects_of_the_callers_are_not_picked_up(connection: Connection, app: Connection) -> None:
    connection.execute(GRANT)
    app.execute(
        """
        create function of_app.octet_length(text) returns integer language plpgsql as $$
        begin
            raise exception 'picked up';
        end $$;
        create temporary table work (keys text[]);
        create temporary table records (key text);
        set search_path = of_app, pg_temp, pg_catalog, pgembed
        """
    )
    assert enqueue(app, "array['1']") == 1


def test_every_function_pins_its_search_path_and_is_explained(connection: Connection) -> None:
    lax = connection.execute(
        """
        select oid::regprocedure
        from pg_proc
        where pronamespace = 'pgembed'::regnamespace
            -- It is put into the statements that call it, which a setting would prevent, and names
            -- everything with its schema.
            and proname <> 'ledger_key'
            and (
                proconfig @> array['search_path=pg_catalog, pg_temp'] is not true
                or obj_description(oid, 'pg_proc') is null
                or prosecdef and proacl is null
            )
        """
    ).fetchall()
    assert lax == []
