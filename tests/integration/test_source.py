"""Refusals of a source, each with the table, the fault and the way out."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import PipelineFault, UsageError
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.pipeline.spec_checks import checked
from pgqueue_embed.source.check import check_source
from pgqueue_embed.source.read import read_records
from tests.support.corpus import make_source, texts
from tests.support.fakes import FakeDevice
from tests.support.pipelines import REPORTS, make_pipeline
from tests.support.working import drain, open_session


def check(connection: Connection, table: Table = REPORTS, *key: str) -> str:
    """Return the types of the key's columns."""
    spec = checked(
        PipelineSpec(
            name="reports",
            source=table,
            target=Table(schema="public", name="chunks"),
            id_fields=key or ("id",),
            text_fields=("body",),
        )
    )
    return ", ".join(column.type for column in check_source(connection, spec).key.columns)


@pytest.fixture
def stranger(connection: Connection, conninfo: str) -> Iterator[Connection]:
    """A session of a role that owns nothing and may read nothing."""
    connection.execute("create role stranger login password 'stranger'")
    with connect(make_conninfo(conninfo, user="stranger", password="stranger")) as session:
        yield session
    connection.execute("drop owned by stranger cascade")
    connection.execute("drop role stranger")


@pytest.mark.parametrize(
    ("column", "id_type"),
    [
        ("smallint", "smallint"),
        ("int", "integer"),
        ("bigserial", "bigint"),
        ("uuid", "uuid"),
        ("date", "date"),
        ("timestamptz", "timestamp with time zone"),
        ("timestamptz(3)", "timestamp with time zone"),
        ("text", "text"),
        ("varchar(20)", "text"),
        ("public.positive", "integer"),
    ],
)
def test_key_types_whose_text_is_their_identity_are_taken(
    connection: Connection, column: str, id_type: str
) -> None:
    connection.execute("create domain public.positive as int check (value > 0)")
    connection.execute(f"create table public.reports (id {column} primary key, body text)")
    assert check(connection) == id_type


@pytest.mark.parametrize(
    "column", ["numeric", "double precision", "timestamp", "char(3)", "jsonb", "int[]", "bytea"]
)
def test_key_types_with_several_spellings_are_refused(connection: Connection, column: str) -> None:
    connection.execute(f"create table public.reports (id {column} primary key, body text)")
    with pytest.raises(UsageError, match=r"public\.reports\.id is of type .*a key may be"):
        check(connection)


@pytest.mark.parametrize("column", ["text", "varchar", "varchar(9)", "char(9)", "name"])
def test_text_columns_of_any_string_type_are_taken(connection: Connection, column: str) -> None:
    connection.execute(f"create table public.reports (id int primary key, body {column})")
    assert check(connection) == "integer"


@pytest.mark.parametrize("column", ["int", "jsonb", "bytea", "text[]", "xml"])
def test_columns_that_hold_no_text_are_refused(connection: Connection, column: str) -> None:
    connection.execute(f"create table public.reports (id int primary key, body {column})")
    with pytest.raises(UsageError, match=r"public\.reports\.body is of type .*must hold text"):
        check(connection)


def test_absent_table_is_refused_with_those_that_there_are(connection: Connection) -> None:
    with pytest.raises(
        UsageError,
        match=r"^there is no table or view public\.reports, and this database has no other yet",
    ):
        check(connection)
    connection.execute('create schema fda; create table fda."Reports" (id int, body text)')
    with pytest.raises(UsageError, match=r"public\.reports; did you mean fda\.Reports\?"):
        check(connection)


def test_absent_column_is_refused_with_those_that_there_are(connection: Connection) -> None:
    make_source(connection)
    with pytest.raises(UsageError, match=r"public\.reports has no column 'key'; it has id, body"):
        check(connection, REPORTS, "key")


def test_dropped_column_is_absent(connection: Connection) -> None:
    make_source(connection)
    connection.execute("alter table public.reports drop column body")
    with pytest.raises(UsageError, match="has no column 'body'; it has id"):
        check(connection)


@pytest.mark.parametrize("grant", ["", "grant usage on schema hidden to stranger"])
def test_unreadable_table_is_refused_with_the_way_out(
    connection: Connection, stranger: Connection, grant: str
) -> None:
    connection.execute("create schema hidden")
    hidden = make_source(connection, schema="hidden")
    connection.execute(grant or "select")
    with pytest.raises(UsageError, match=r"may not read hidden\.reports; grant usage .* select"):
        check(stranger, hidden)


@pytest.mark.parametrize(
    "index",
    [
        "select",
        "create index on public.reports (id)",
        "create unique index on public.reports (id) where id > 0",
        "create unique index on public.reports (id, body)",
        "create unique index on public.reports ((id + 1))",
    ],
    ids=["none", "not unique", "partial", "two columns", "expression"],
)
def test_key_that_is_not_unique_is_refused_with_the_way_out(
    connection: Connection, index: str
) -> None:
    connection.execute("create table public.reports (id int, body text)")
    connection.execute(index)
    expected = r"no unique key on id; add one \(create unique index on public\.reports \(id\)\)"
    with pytest.raises(UsageError, match=expected):
        check(connection)


def test_unique_index_whose_build_was_cut_short_is_named(connection: Connection) -> None:
    connection.execute("create table public.reports (id int, body text)")
    connection.execute("insert into public.reports values (1, 'a'), (1, 'b')")
    with pytest.raises(psycopg.errors.UniqueViolation):
        connection.execute("create unique index concurrently spoiled on public.reports (id)")
    expected = (
        r"no unique key on id: index public\.spoiled is invalid.*; reindex index concurrently"
    )
    with pytest.raises(UsageError, match=expected):
        check(connection)


@pytest.mark.parametrize(
    "index",
    [
        "alter table public.reports add unique (id)",
        "create unique index on public.reports (id)",
        "create unique index on public.reports (id) include (body)",
    ],
)
def test_any_whole_unique_index_is_a_key(connection: Connection, index: str) -> None:
    connection.execute("create table public.reports (id int, body text)")
    connection.execute(index)
    assert check(connection) == "integer"


@pytest.mark.parametrize("kind", ["view", "materialized view"])
def test_view_is_taken_unless_it_has_duplicates(connection: Connection, kind: str) -> None:
    make_source(connection, texts(2), table="base")
    connection.execute(f"create {kind} public.reports as select id, body from public.base")
    assert check(connection) == "bigint"
    doubled = Table(schema="public", name="doubled")
    connection.execute(
        f"create {kind} public.doubled as"
        " select id, body from public.base union all select id, body from public.base"
    )
    with pytest.raises(UsageError, match=r"public\.doubled has several rows with the same id"):
        check(connection, doubled)


def test_source_is_never_written_to(connection: Connection, conninfo: str) -> None:
    make_source(connection, texts(5))
    pipeline = make_pipeline(connection)
    connection.execute(
        "create function public.refuse() returns trigger language plpgsql as"
        " $$ begin raise 'written to'; end $$;"
        " create trigger refuse before insert or update or delete on public.reports"
        " for each row execute function public.refuse()"
    )
    connection.execute(
        "insert into pgembed.work (pipeline_id, keys, records)"
        " values (%s, array['1', '2', '3', '4', '5'], 5)",
        (pipeline.id,),
    )
    with open_session(conninfo) as session:
        drain(session, pipeline, FakeDevice())


class TestReading:
    """The read before the model runs."""

    def test_records_come_in_the_order_of_the_keys_and_absent_ones_are_left_out(
        self, connection: Connection
    ) -> None:
        make_source(connection, ["one", None, "three"])
        pipeline = make_pipeline(connection)
        records = read_records(
            connection, pipeline, ["3", "9", "2", "1"], [False] * 4, limit_bytes=1000
        )
        found = [(record.key, record.document) for record in records]
        assert found == [("3", "three"), ("2", ""), ("1", "one")]
        assert not any(record.unchanged or record.beyond_limit for record in records)

    def test_text_is_fetched_up_to_the_byte_limit(self, connection: Connection) -> None:
        make_source(connection, ["é" * 10, "b" * 10, "c" * 10])
        pipeline = make_pipeline(connection)
        keys = ["1", "2", "3"]
        for limit, fetched in [(0, 1), (19, 1), (20, 2), (29, 2), (30, 3)]:
            records = read_records(connection, pipeline, keys, [False] * 3, limit_bytes=limit)
            assert [record.document is not None for record in records] == [
                position < fetched for position in range(3)
            ]
            assert [record.beyond_limit for record in records] == [
                position >= fetched for position in range(3)
            ]

    def test_null_and_empty_text_have_one_hash(self, connection: Connection) -> None:
        make_source(connection, [None, "", " "])
        pipeline = make_pipeline(connection)
        first, second, third = read_records(
            connection, pipeline, ["1", "2", "3"], [False] * 3, limit_bytes=10
        )
        assert first.document_hash == second.document_hash != third.document_hash

    def test_text_that_shrank_under_a_view_is_told_by_its_hash(
        self, connection: Connection
    ) -> None:
        make_source(connection, ["text"])
        pipeline = make_pipeline(connection)
        (before,) = read_records(connection, pipeline, ["1"], [False], limit_bytes=10)
        connection.execute("update public.reports set body = 'texts'")
        (after,) = read_records(connection, pipeline, ["1"], [False], limit_bytes=10)
        assert before.document_hash != after.document_hash

    def test_nothing_of_the_users_stays_locked(self, connection: Connection) -> None:
        make_source(connection, ["text"])
        pipeline = make_pipeline(connection)
        read_records(connection, pipeline, ["1"], [False], limit_bytes=10)
        held = connection.execute(
            "select count(*) from pg_locks where relation = 'public.reports'::regclass"
        )
        assert held.fetchone() == (0,)

    def test_right_taken_away_faults_the_pipeline(
        self, connection: Connection, stranger: Connection
    ) -> None:
        make_source(connection, ["text"])
        pipeline = make_pipeline(connection)
        with pytest.raises(PipelineFault, match="permission denied"):
            read_records(stranger, pipeline, ["1"], [False], limit_bytes=10)
