"""Search from a program: the same by every way, near to anything, with errors by their kind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from pgqueue_embed import Database, Hit, PgembedError, search, search_async
from pgqueue_embed.api.pipeline import Pipeline as Face
from pgqueue_embed.db import applications
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import DatabaseUnavailable, NotFound, UsageError
from pgqueue_embed.pipeline.columns import Column
from pgqueue_embed.pipeline.key import Key
from pgqueue_embed.pipeline.key_values import KeyValue, key_text, key_texts
from pgqueue_embed.pipeline.pipeline import Pipeline
from tests.support.searching import QUERY, ROWS, SEARCHED

PREPARED = SEARCHED

EVERYTHING: dict[str, Any] = {"threshold": -1.0, "limit": 7}
REQUESTS: tuple[dict[str, Any], ...] = (
    {},
    {"offset": 3, "threshold": 0.5, "columns": ["made", "kind"]},
    {"where": "kind = 7 and body like '%7%'", "per_record": True, "columns": "kind"},
    {"mmr": 0.6, "rerank_top": 20},
    {"where": "body not like '%支架%'"},
    {"record": 7, "vector": None, "per_record": True},
    {"where": "set_config('application_name', 'changed', false) is not null"},
)

# What a program may have set, all of which would change what is found or how it is read.
ODD = """
set search_path = theirs, pg_catalog; set datestyle = 'German'; set timezone = 'Asia/Tokyo';
set application_name = 'theirs'; set row_security = off; set client_encoding = 'sql_ascii'
"""
NOT_OURS = """
create schema theirs;
create function theirs.to_regclass(text) returns regclass language sql as 'select null::regclass'
"""
SETTINGS = (
    "select current_setting('search_path'), current_setting('datestyle'),"
    " current_setting('timezone'), current_setting('application_name'),"
    " current_setting('transaction_read_only'), current_setting('statement_timeout'),"
    " (select count(*) from pg_locks where pid = pg_backend_pid() and locktype = 'relation'"
    "  and relation::regclass::text like '%reports%')"
)


def ask(found: Callable[..., Any], reports: Face, asked: dict[str, Any], **over: Any) -> Any:
    return found(reports, **{"vector": QUERY, **EVERYTHING, **asked}, **over)


def by_a_connection(conninfo: str, reports: Face, autocommit: bool) -> list[list[Hit]]:
    with psycopg.connect(conninfo, row_factory=dict_row, autocommit=autocommit) as own:
        own.execute(ODD)
        own.commit()
        before = own.execute(SETTINGS).fetchone()
        found = [ask(search, reports, each, connection=own) for each in REQUESTS]
        assert own.execute(SETTINGS).fetchone() == before
        return found


def by_a_pool(conninfo: str, reports: Face) -> list[list[Hit]]:
    with ConnectionPool(conninfo, min_size=1, max_size=1) as pool:
        return [ask(search, reports, each, pool=pool) for each in REQUESTS]


async def awaited(conninfo: str, reports: Face) -> list[list[list[Hit]]]:
    ways = [[await ask(search_async, reports, each) for each in REQUESTS]]
    own = await psycopg.AsyncConnection.connect(conninfo, row_factory=dict_row)
    async with own:
        await own.execute(ODD)
        before = await (await own.execute(SETTINGS)).fetchone()
        ways.append([await ask(search_async, reports, each, connection=own) for each in REQUESTS])
        assert await (await own.execute(SETTINGS)).fetchone() == before
    async with AsyncConnectionPool(conninfo, min_size=1, max_size=2, open=False) as pool:
        together = [ask(search_async, reports, each, pool=pool) for each in REQUESTS]
        ways.append(await asyncio.gather(*together))
    return ways


@pytest.mark.on_both_servers
def test_every_way_finds_the_same_and_leaves_no_trace(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    connection.execute(NOT_OURS)
    face = Database(conninfo).pipeline(reports.name)
    expected = [ask(search, face, each) for each in REQUESTS]
    assert [len(each) for each in expected] == [7] * len(REQUESTS)
    assert all(isinstance(hit.key, int) and hit.key_text == str(hit.key) for hit in expected[0])
    assert by_a_connection(conninfo, face, autocommit=True) == expected
    assert by_a_connection(conninfo, face, autocommit=False) == expected
    assert by_a_pool(conninfo, face) == expected
    for found in asyncio.run(awaited(conninfo, face)):
        assert found == expected


def test_a_connection_that_cannot_be_searched_over_is_refused(
    conninfo: str, reports: Pipeline
) -> None:
    face = Database(conninfo).pipeline(reports.name)
    with psycopg.connect(conninfo) as own:
        own.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        assert ask(search, face, {}, connection=own)
        own.execute("select 1")
        with pytest.raises(UsageError, match="repeatable read"):
            ask(search, face, {}, connection=own)
        assert own.execute("select 2").fetchone() == (2,)
        own.rollback()
        with own.pipeline(), pytest.raises(UsageError, match="pipeline mode"):
            ask(search, face, {}, connection=own)
        with pytest.raises(psycopg.Error):
            own.execute("select 1 / 0")
        with pytest.raises(UsageError, match="has failed; roll it back first"):
            ask(search, face, {}, connection=own)
    with (
        ConnectionPool(conninfo, min_size=1, max_size=1, timeout=0.1) as pool,
        pool.connection(),
        pytest.raises(DatabaseUnavailable, match=r"^couldn't get a connection"),
    ):
        ask(search, face, {}, pool=pool)


def test_a_connection_takes_one_search_at_a_time(conninfo: str, reports: Pipeline) -> None:
    face = Database(conninfo).pipeline(reports.name)

    async def at_once() -> list[Any]:
        async with await psycopg.AsyncConnection.connect(conninfo) as own:
            some = [ask(search_async, face, {}, connection=own) for _ in range(3)]
            found = await asyncio.gather(*some, return_exceptions=True)
            assert own.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
            return [*found, await ask(search_async, face, {}, connection=own)]

    first, *refused, later = asyncio.run(at_once())
    assert len(first) == 7
    assert first == later
    for each in refused:
        assert isinstance(each, UsageError)
        assert "in another search at this moment; give each its own, or a pool" in str(each)


def test_sessions_are_kept_for_the_next_search_and_replaced_when_lost(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    database = Database(make_conninfo(conninfo, application_name="kept"))
    face = database.pipeline(reports.name)

    def sessions() -> list[int]:
        query = "select pid from pg_stat_activity where application_name = %s and pid <> %s"
        mine = (applications.COMMAND, connection.info.backend_pid)
        return [pid for (pid,) in connection.execute(query, mine)]

    expected = ask(search, face, {})
    (first,) = sessions()
    assert ask(search, face, {"where": "true"}) == expected
    assert sessions() == [first]
    connection.execute("select pg_terminate_backend(%s, 10000)", (first,))
    assert ask(search, face, {}) == expected
    (second,) = sessions()
    assert second != first
    # As in a child of this process, whose sessions these are not.
    ours, face.sessions._pid = face.sessions._pid, 0
    assert ask(search, face, {}) == expected
    assert second in sessions()
    face.sessions._pid = ours
    database.close()
    assert ask(search, face, {}) == expected
    assert second not in sessions()


# Near to a record


@pytest.mark.parametrize("index", ["exact", "hnsw"])
def test_what_is_like_a_record_is_not_itself_and_nothing_is_missing(
    conninfo: str, connection: Connection, reports: Pipeline, index: str
) -> None:
    if index == "hnsw":
        connection.execute(
            "create index on reports_chunks using hnsw (embedding public.vector_cosine_ops)"
        )
    face = Database(conninfo).pipeline(reports.name)
    (mean,) = connection.row(
        "select public.avg(embedding)::real[] from reports_chunks where fulltext_id = 7"
    )
    by_vector = search(face, vector=mean, limit=12, threshold=-1)
    expected = [hit for hit in by_vector if hit.key != 7][:10]
    assert search(face, record=7, limit=10, threshold=-1) == expected
    assert search(face, record="7", limit=10, threshold=-1) == expected
    assert search(face, record=7, limit=4, offset=3, threshold=-1) == expected[3:7]
    everything = search(face, record=7, limit=2 * ROWS, threshold=-1)
    assert len(everything) == 2 * ROWS - 2
    of_records = search(face, record=7, limit=3, per_record=True, threshold=-1)
    assert len({hit.key for hit in of_records} - {7}) == 3


@pytest.mark.parametrize("per_record", [False, True])
def test_without_a_threshold_nothing_that_fits_is_missing(
    conninfo: str, reports: Pipeline, per_record: bool
) -> None:
    face = Database(conninfo).pipeline(reports.name)
    hits = search(face, vector=QUERY, limit=2 * ROWS, per_record=per_record)
    assert len(hits) == (ROWS if per_record else 2 * ROWS)
    assert hits[-1].score < -0.9 or per_record
    assert {hit.matched for hit in hits} == {2 if per_record else None}
    assert all(hit.score >= 0 for hit in search(face, vector=QUERY, limit=2 * ROWS, threshold=0))


@pytest.mark.parametrize("vector_type", ["vector", "halfvec"])
def test_the_length_of_a_vector_does_not_matter(
    conninfo: str, connection: Connection, reports: Pipeline, vector_type: str
) -> None:
    connection.execute(
        f"alter table reports_chunks alter embedding type public.{vector_type}(8);"
        f"update pgembed.pipelines set vector_type = '{vector_type}'"
    )
    face = Database(conninfo).pipeline(reports.name)
    query = "select array_agg(score) from pgembed.search('reports', %s::real[], 12)"
    for direction in (np.eye(8)[1], np.array([3, 2, 0, 0, 1, 0, 0, 0])):
        expected = [hit.score for hit in search(face, vector=direction, limit=12)]
        assert len(expected) == 12
        for length in (1e-30, 1e5, 1e37):
            hits = search(face, vector=length * direction, limit=12)
            np.testing.assert_allclose([hit.score for hit in hits], expected, atol=1e-3)
            scores = connection.value(query, ((length * direction).tolist(),))
            np.testing.assert_allclose(scores, expected, atol=1e-3)


def test_records_of_two_columns_in_a_column_of_the_source(conninfo: str, letters: Pipeline) -> None:
    face = Database(conninfo).pipeline("letters")
    day = date(2026, 1, 9)
    hits = search(face, record=(8, day), limit=2, threshold=-1)
    assert {hit.key for hit in hits} == {(7, date(2026, 1, 8)), (9, date(2026, 1, 10))}
    assert search(face, record=hits[0].key_text, limit=1) == search(
        face, record=hits[0].key, limit=1
    )
    with pytest.raises(NotFound, match=r'no vectors of a record \[8, "2026-01-08"\]') as absent:
        search(face, record=(8, date(2026, 1, 8)))
    assert absent.value.status == 404


# Keys in their own types

VALUES: dict[str, list[KeyValue]] = {
    "bigint": [0, -5, 2**62],
    "text": ["a", "ü \"'\\\n\x1f/\x7f", '["a"]', ""],
    "uuid": [UUID(int=7)],
    "date": [date(2026, 2, 3), date(1, 1, 1), date(9999, 12, 31)],
    "timestamp with time zone": [
        datetime(2026, 2, 3, 4, 5, 6, tzinfo=timezone.utc),
        datetime(2026, 2, 3, 4, 5, 6, 120_000, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        datetime(1900, 1, 1, 0, 0, 0, 1, tzinfo=timezone(timedelta(hours=-3))),
    ],
}


def test_a_key_in_its_own_type_has_the_text_that_postgresql_makes(connection: Connection) -> None:
    for type_, values in VALUES.items():
        one = Key((Column(name="a", type=type_),))
        two = Key((Column(name="a", type=type_), Column(name="b", type="bigint")))
        for value in values:
            row = sql.SQL("(select {}::{} as a, 7::bigint as b) as source").format(
                sql.Literal(value), sql.SQL(type_)
            )
            query = sql.SQL("select {}, {} from {}")
            made = query.format(one.text("source"), two.text("source"), row)
            assert connection.row(made) == (key_text(one, value), key_text(two, (value, 7)))
            assert key_texts(one, [value, value]) == [key_text(one, value)] * 2
            assert key_texts(two, (value, 7)) == [key_text(two, (value, 7))]
            assert key_texts(two, ((value, 7), (value, 7))) == [key_text(two, (value, 7))] * 2


@pytest.mark.parametrize("given", [True, 1.0, None, b"7", (7,), datetime(2026, 1, 1), date.max])
def test_what_is_no_key_is_refused(given: object) -> None:
    for type_ in VALUES:
        if not isinstance(given, date) or type_ == "timestamp with time zone":
            with pytest.raises(UsageError, match="a key "):
                key_text(Key((Column(name="a", type=type_),)), given)


# Errors by their kind


def named(conninfo: str, name: str) -> Face:
    return Face(conninfo, name)


# Of no type that any of these has.
CHECKED = (
    *("vector", "limit", "offset", "threshold", "where", "columns", "per_record", "rerank_top"),
    *("mmr", "hybrid", "hybrid_weight", "connection", "pool"),
)
ODD_VALUES: tuple[object, ...] = (object(), b"bytes", {1: 2}, [[]], -(10**5000), -(10**400))

WRONG: tuple[tuple[int, Callable[[str], Any]], ...] = (
    *(
        (400, lambda dsn, given=given: ask(search, named(dsn, "reports"), given))
        for given in (
            {"limit": 0},
            {"limit": "5"},
            {"offset": -1},
            {"threshold": 2},
            {"mmr": 7},
            {"rerank_top": 0},
            {"rerank": "any"},
            {"query": "and words"},
            {"vector": None},
            {"vector": [1.0]},
            {"vector": "words"},
            {"vector": [float("nan")] * 8},
            {"vector": np.zeros(8)},
            {"vector": None, "query": " "},
            {"vector": None, "record": 1.5},
            {"vector": None, "record": "seven"},
            {"where": "kind = ("},
            {"where": "no_such_column = 1"},
            {"where": "1 / (kind - kind) = 1"},
            {"where": ";"},
            {"columns": ["no_such_column"]},
            {"connection": object(), "pool": object()},
            {"vector": None, "query": "half a pair: \ud800"},
            {"columns": ["kind", 1]},
            *({name: value} for name in CHECKED for value in ODD_VALUES),
        )
    ),
    (400, lambda dsn: search("reports", "words")),  # type: ignore[arg-type]
    (400, lambda dsn: asyncio.run(search_async("reports", "words"))),  # type: ignore[arg-type]
    (404, lambda dsn: ask(search, named(dsn, "absent"), {})),
    (404, lambda dsn: ask(search, named(dsn, "reports"), {"vector": None, "record": ROWS + 1})),
    (404, lambda dsn: Database(dsn).pipeline("absent")),
    (403, lambda dsn: ask(search, named(f"{dsn} options='-c role=nobody_here'", "reports"), {})),
    (403, lambda dsn: ask(search, named(f"{dsn} options='-c role=a_looker'", "reports"), {})),
    (403, lambda dsn: Database(f"{dsn} options='-c role=nobody_here'").pipeline("reports")),
    (503, lambda dsn: ask(search, named(make_conninfo(dsn, port="1"), "reports"), {})),
    (503, lambda dsn: ask(search, named(make_conninfo(dsn, dbname="postgres"), "reports"), {})),
)


def test_an_error_tells_its_kind_in_words_of_python(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    for role in ("nobody_here", "a_looker"):
        connection.execute(f"drop role if exists {role}; create role {role}")
    connection.execute(
        "grant usage on schema pgembed to a_looker;"
        "grant select on all tables in schema pgembed to a_looker"
    )
    try:
        for number, (status, call) in enumerate(WRONG):
            with pytest.raises(PgembedError) as refused:
                call(conninfo)
            said = str(refused.value)
            assert refused.value.status == status, (number, said)
            assert "--" not in said, said
            assert "\n" not in said, said
            assert status != 403 or "grant " in said, (number, said)
    finally:
        for role in ("nobody_here", "a_looker"):
            connection.execute(f"drop owned by {role}; drop role {role}")
