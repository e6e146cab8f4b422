"""Change capture: what a statement changes is queued, once, and nothing else is."""

from __future__ import annotations

import pytest
from psycopg import sql

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.captured import CAPTURED, make_and_install
from tests.support.capturing import SWEEP, captured
from tests.support.corpus import make_source, texts
from tests.support.oracle import assert_converged
from tests.support.working import drain, open_session

PREPARED = {"pipeline": CAPTURED}


LEVELS = ("read committed", "repeatable read", "serializable")


CHANGES = {
    "insert": ("insert into reports values (10, 'a'), (11, null)", ["10", "11"]),
    "insert of nothing": ("insert into reports select 10, 'a' where false", []),
    "insert by default": ("insert into reports (id) values (10)", ["10"]),
    "update of text": ("update reports set body = 'b' where id in (2, 3)", ["2", "3"]),
    "update of text by itself": ("update reports set body = body", []),
    "update of text to null": ("update reports set body = null where id = 2", ["2"]),
    "update of another column": ("update reports set other = other + 1", []),
    "update of no row": ("update reports set body = 'b' where id = 99", []),
    "update of case": ("update reports set body = upper(body) where id = 1", ["1"]),
    "update of the key": ("update reports set id = 20 where id = 2", ["2", "20"]),
    "update of all keys": (
        "update reports set id = id + 100 where id < 3",
        ["1", "101", "102", "2"],
    ),
    "delete": ("delete from reports where id <= 2", ["1", "2"]),
    "delete of nothing": ("delete from reports where id = 99", []),
    "truncate": ("truncate reports", [SWEEP]),
    "upsert": (
        "insert into reports values (1, 'b'), (30, 'c')"
        " on conflict (id) do update set body = excluded.body",
        ["1", "30"],
    ),
    "upsert of the same": (
        "insert into reports select id, body from reports"
        " on conflict (id) do update set body = excluded.body",
        [],
    ),
    "upsert that does nothing": ("insert into reports values (1) on conflict do nothing", []),
    "merge": (
        """
        merge into reports using (values (1, 'new'), (2, null), (40, 'in')) as v (id, body)
            on v.id = reports.id
        when matched and v.body is null then delete
        when matched then update set body = v.body
        when not matched then insert (id, body) values (v.id, v.body)
        """,
        ["1", "2", "40"],
    ),
    "several writes in one statement": (
        """
        with gone as (delete from reports where id = 1 returning id, body),
        moved as (insert into reports select id + 50, body from gone returning id)
        update reports set body = 'c' where id = 3
        """,
        ["1", "3", "51"],
    ),
    "copy": ("copy reports (id, body) from stdin", ["60", "61"]),
}


@pytest.mark.on_both_servers
def test_statement_queues_the_records_that_it_changes_once(
    connection: Connection, pipeline: Pipeline
) -> None:
    del pipeline
    queued = {}
    for change, (statement, _) in CHANGES.items():
        with connection.transaction(force_rollback=True):
            if change == "copy":
                with connection.cursor().copy(statement) as rows:
                    rows.write("60\ta\n61\tb\n")
            else:
                connection.execute(statement)
            queued[change] = captured(connection)
    assert queued == {change: keys for change, (_, keys) in CHANGES.items()}


@pytest.mark.on_both_servers
def test_key_of_a_record_without_text_is_queued_before_and_after(
    connection: Connection, pipeline: Pipeline
) -> None:
    """Nothing but the key tells that there is a change."""
    del pipeline
    connection.execute("insert into reports values (10, null)")
    connection.execute("delete from pgembed.work")
    connection.execute("update reports set id = 20 where id = 10")
    assert captured(connection) == ["10", "20"]


def test_keys_that_are_swapped_in_one_statement_are_both_queued(connection: Connection) -> None:
    connection.execute(
        """
        create table reports (id int unique deferrable, body text);
        insert into reports values (1, 'one'), (2, 'two'), (3, 'three'), (4, 'same'), (5, 'same')
        """
    )
    make_and_install(connection)
    connection.execute("update reports set id = 3 - id where id < 3")
    assert captured(connection) == ["1", "2"]
    connection.execute("update reports set id = 9 - id where id > 3")
    assert captured(connection) == [], "either key stands for the same text as before"


@pytest.mark.parametrize("level", LEVELS)
def test_change_is_queued_with_its_commit_in_every_isolation_level(
    conninfo: str, connection: Connection, pipeline: Pipeline, level: str
) -> None:
    del pipeline
    with connect(conninfo) as writer:
        writer.execute(f"begin isolation level {level}")
        writer.execute("update public.reports set body = 'b' where id = 1")
        writer.execute("delete from public.reports where id = 2")
        assert captured(connection) == []
        writer.execute("commit")
    assert captured(connection) == ["1", "2"]


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_rolled_back_is_not_queued(
    connection: Connection, pipeline: Pipeline, level: str
) -> None:
    del pipeline
    connection.execute(f"begin isolation level {level}")
    connection.execute("update reports set body = 'kept' where id = 1")
    connection.execute("savepoint s")
    connection.execute("update reports set body = 'lost' where id in (2, 3)")
    connection.execute("truncate reports")
    connection.execute("rollback to s")
    connection.execute("delete from reports where id = 4")
    connection.execute("commit")
    assert captured(connection) == ["1", "4"]


@pytest.mark.parametrize("level", LEVELS)
def test_two_writers_at_once_do_not_wait_for_each_other(
    conninfo: str, connection: Connection, pipeline: Pipeline, level: str
) -> None:
    del pipeline
    with connect(conninfo) as one, connect(conninfo) as other:
        for writer, key in ((one, 1), (other, 2)):
            writer.execute(f"begin isolation level {level}")
            writer.execute("set local lock_timeout = '1s'")
            writer.execute("update public.reports set body = 'b' where id = %s", (key,))
        one.execute("commit")
        other.execute("commit")
    assert captured(connection) == ["1", "2"]


def test_large_statement_is_queued_in_items_of_256_keys(
    connection: Connection, pipeline: Pipeline
) -> None:
    del pipeline
    connection.execute("delete from reports")
    captured(connection)
    connection.execute("insert into reports select n, 'text' from generate_series(1, 1000) as n")
    sizes = connection.execute("select records from pgembed.work order by 1").fetchall()
    assert sizes == [(232,), (256,), (256,), (256,)]
    assert len(set(captured(connection))) == 1000
    connection.execute("update reports set body = 'changed'")
    assert connection.execute("select max(records) from pgembed.work").fetchone() == (256,)
    assert len(captured(connection)) == 1000


@pytest.mark.on_both_servers
def test_composite_key_with_odd_names_is_queued_as_enqueue_does(connection: Connection) -> None:
    connection.execute(
        """
        create schema "Ü 1";
        create table "Ü 1"."Be""richte" (
            "näme, 1" timestamptz, "select" text, "key" text, "item" jsonb,
            primary key ("näme, 1", "select")
        );
        insert into "Ü 1"."Be""richte" values ('2024-03-31 02:30:00+02', 'a"\\b', 'text', '{}')
        """
    )
    source = Table(schema="Ü 1", name='Be"richte')
    pipeline = make_and_install(
        connection, source, id_fields=("näme, 1", "select"), template="$key ($item)"
    )
    enqueue(connection, pipeline, Selection())
    expected = captured(connection)
    assert len(expected) == 1
    connection.execute("set timezone = 'Asia/Tokyo'; set datestyle = 'German'")
    for change in ("\"key\" = 'b'", "item = '[1]'", "item = item"):
        connection.execute(sql.SQL('update "Ü 1"."Be""richte" set {}').format(sql.SQL(change)))
    assert captured(connection) == expected * 2
    connection.execute('delete from "Ü 1"."Be""richte"')
    assert captured(connection) == expected


def test_rows_without_a_key_are_no_records(connection: Connection) -> None:
    connection.execute("create table reports (id int unique, body text)")
    make_and_install(connection)
    connection.execute("insert into reports values (null, 'a'), (1, 'b')")
    assert captured(connection) == ["1"]
    connection.execute("update reports set body = 'c' where id is null")
    assert captured(connection) == []
    connection.execute("update reports set id = 2 where id is null")
    connection.execute("update reports set id = null where id = 1")
    assert captured(connection) == ["1", "2"]
    connection.execute("delete from reports where id is null")
    assert captured(connection) == []


WHERE = {
    "a column": ("state = 'open'", ["state"]),
    "two columns, one in a subquery": (
        "state is not null and exists (select from public.users as u where u.id = owner)",
        ["owner", "state"],
    ),
    "the row": ("source is distinct from null", ["owner", "state", "unused"]),
    "a percent sign": ("state like '%open%'", ["state"]),
}


@pytest.mark.parametrize("case", WHERE)
def test_change_of_a_column_in_the_condition_queues_the_record(
    connection: Connection, case: str
) -> None:
    where, columns = WHERE[case]
    connection.execute(
        """
        create table users (id int primary key);
        create table reports (id int primary key, body text, state text, owner int, unused point);
        insert into reports values (1, 'text', 'open', 1, point(0, 0))
        """
    )
    make_and_install(connection, where=where)
    queued = []
    for column, value in {"owner": "2", "state": "'shut'", "unused": "point(1, 1)"}.items():
        connection.execute(f"update reports set {column} = {value}")
        queued += [column] if captured(connection) else []
    assert queued == columns


def test_condition_that_fails_is_no_trouble_to_the_writer(connection: Connection) -> None:
    connection.execute("create table reports (id int primary key, body text, size int)")
    make_and_install(connection, where="1 / size = 1")
    connection.execute("insert into reports values (1, 'text', 0)")
    connection.execute("update reports set body = 'b'")
    assert captured(connection) == ["1", "1"]


def test_change_behind_a_virtual_generated_column_queues_the_record(
    connection: Connection,
) -> None:
    connection.execute(
        """
        create table reports (
            id int primary key, a text, b text,
            body text generated always as (upper(a)) virtual,
            kept text generated always as (b || '.') stored
        );
        insert into reports values (1, 'a', 'b')
        """
    )
    make_and_install(connection, text_fields=("body", "kept"))
    connection.execute("update reports set a = 'c'")
    assert captured(connection) == ["1"]
    connection.execute("update reports set b = 'c'")
    assert captured(connection) == ["1"]
    connection.execute("update reports set a = 'c', b = 'c'")
    assert captured(connection) == []


def test_vectors_in_a_column_of_the_source_are_no_change_of_it(
    conninfo: str, connection: Connection
) -> None:
    make_source(connection, ["one", "two", "three"])
    pipeline = make_and_install(
        connection, into_column="vector", chunking="none", where="source is distinct from null"
    )
    enqueue(connection, pipeline, Selection())
    with open_session(conninfo) as session:
        drain(session, pipeline)
        connection.execute("update reports set body = 'changed' where id = 1")
        claims = drain(session, pipeline)
    assert [claim.commit.chunks for claim in claims] == [1]
    assert_converged(connection, "reports")


def test_change_of_a_column_that_is_copied_queues_the_record(connection: Connection) -> None:
    make_source(connection, texts(2))
    connection.execute("alter table reports add column author text, add column other text")
    make_and_install(connection, copy_columns=("author",))
    connection.execute("update reports set author = 'somebody' where id = 1")
    assert captured(connection) == ["1"]
    connection.execute("update reports set other = 'something'")
    assert captured(connection) == []


def test_values_that_are_equal_and_have_two_texts_are_different(connection: Connection) -> None:
    connection.execute(
        """
        create table reports (id int primary key, amount numeric);
        insert into reports values (1, 1.0)
        """
    )
    make_and_install(connection, template="$amount")
    connection.execute("update reports set amount = 1.00")
    assert captured(connection) == ["1"]
