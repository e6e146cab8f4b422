"""A search while what it needs is away, in the way or replaced: whose fault it is, and no other."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from pgqueue_embed import Database, Hit, PgembedError, search, search_async
from pgqueue_embed.api.pipeline import Pipeline as Face
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.db.steps import Steps
from pgqueue_embed.errors import PipelineReplaced, SearchTimeout, UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.search_server import service
from pgqueue_embed.vector_search import near as nearness
from pgqueue_embed.vector_search import query
from pgqueue_embed.vector_search.near import LikeRecord, Near, Origin
from pgqueue_embed.vector_search.record import read_record
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support.searching import QUERY, SEARCHED
from tests.support.serving import status_of

PREPARED = SEARCHED


@pytest.fixture
def face(conninfo: str, reports: Pipeline) -> Face:
    """The pipeline as a program has it."""
    return Database(conninfo).pipeline(reports.name)


# What takes away something that a search needs, what brings it back, and what is said.
TAKEN_AWAY = (
    (
        "alter table reports_chunks rename to away",
        "alter table away rename to reports_chunks",
        'cannot search public.reports_chunks: .*"public.reports_chunks" does not exist',
    ),
    (
        "alter table reports rename to away",
        "alter table away rename to reports",
        'cannot search public.reports_chunks: .*"public.reports" does not exist',
    ),
    (
        "alter table reports_chunks rename embedding to away",
        "alter table reports_chunks rename away to embedding",
        "cannot search public.reports_chunks: .*target.embedding does not exist",
    ),
    (
        "alter schema pgembed rename to away",
        "alter schema away rename to pgembed",
        '"pgembed.pipelines" does not exist',
    ),
    (
        "drop extension vector cascade",
        "select",
        "the vector extension is not created here; run: pgembed migrate$",
    ),
)


def test_what_is_not_there_is_no_fault_of_the_request(
    conninfo: str, connection: Connection, face: Face
) -> None:
    with status_of(conninfo) as search_once:
        for takes, brings_back, says in TAKEN_AWAY:
            assert search_once(where="kind = 7") == (200, "")
            assert search(face, vector=QUERY, where="kind = 7")
            connection.execute(takes)
            with pytest.raises(PgembedError, match=says) as refused:
                search(face, vector=QUERY, where="kind = 7")
            assert refused.value.status == 503
            assert search_once(where="kind = 7") == (503, str(refused.value))
            connection.execute(brings_back)
    with pytest.raises(PgembedError, match=says):
        search(face, record=7)


# What can be no key of `letters`, an integer and a date, and of `reports`, an integer.
NO_KEYS: tuple[tuple[str, str, str], ...] = (
    ("letters", "x", r"its keys are JSON arrays of a \(integer\), b \(date\)$"),
    ("letters", '["1", "soon"]', r"its keys are JSON arrays of a \(integer\), b \(date\)$"),
    ("letters", "[1]", r"its keys are JSON arrays of a \(integer\), b \(date\)$"),
    ("reports", "soon", r"its key is id \(integer\)$"),
    ("reports", "\ud800", "surrogates"),
    ("reports", "\0", "NUL"),
)


def test_what_can_be_no_key_is_told_what_one_is(
    conninfo: str, connection: Connection, reports: Pipeline, letters: Pipeline
) -> None:
    pipelines = {each.name: each for each in (reports, letters)}
    for name, key, says in NO_KEYS:
        with pytest.raises(UsageError, match=says) as refused:
            search(Database(conninfo).pipeline(name), record=key)
        assert "cannot search" not in str(refused.value)
        if name == "reports":
            with pytest.raises(UsageError, match=says):
                read_record(connection, pipelines[name], key)
    (first, second) = read_record(connection, reports, " 7")
    assert (first.chunk_index, second.chunk_index) == (0, 1)


def test_who_is_in_the_way_is_worth_another_try(
    conninfo: str, face: Face, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "CONDITION_SECONDS", 0.4)
    with psycopg.connect(conninfo) as other, psycopg.connect(conninfo) as own:
        for table in ("public.reports_chunks", "public.reports", "pgembed.pipelines"):
            other.execute(f"lock table {table} in access exclusive mode")
            with status_of(conninfo) as search_once:
                status, message = search_once(where="kind = 7")
            assert status == 503, (table, message)
            assert "lock timeout" in message
            other.rollback()
        other.execute("lock table public.reports_chunks in access exclusive mode")
        own.execute("set lock_timeout = '50ms'")
        with pytest.raises(SearchTimeout, match="lock timeout"):
            search(face, vector=QUERY, connection=own)


@pytest.mark.parametrize(("given", "taken"), [("0", "1min"), ("2min", "1min"), ("7s", "7s")])
def test_a_program_with_less_patience_keeps_it(
    conninfo: str, face: Face, given: str, taken: str
) -> None:
    with psycopg.connect(conninfo) as own:
        own.execute(f"set statement_timeout = '{given}'")
        where = f"current_setting('statement_timeout') = '{taken}'"
        assert search(face, vector=QUERY, where=where, connection=own)


def test_a_pool_whose_connections_were_lost_is_searched_over(
    conninfo: str, connection: Connection, face: Face
) -> None:
    def lose() -> None:
        ended = (
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'a'"
        )
        assert connection.execute(ended).rowcount == 3

    async def awaited() -> list[Hit]:
        async with AsyncConnectionPool(**sizes, open=False) as pool:
            await pool.wait()
            lose()
            return await search_async(face, vector=QUERY, pool=pool)

    named = f"{conninfo} application_name=a"
    sizes: dict[str, Any] = {"conninfo": named, "min_size": 3, "max_size": 3}
    with ConnectionPool(**sizes) as pool:
        pool.wait()
        lose()
        expected = search(face, vector=QUERY, pool=pool)
    assert asyncio.run(awaited()) == expected == search(face, vector=QUERY)


MORE_CHUNKS = """
insert into public.reports_chunks (fulltext_id, chunk_id, chunk_index, text_chunk, start_char,
    end_char, tokens, embedding)
select 7, '7-' || number, number, 'more', 10, 20, 2,
    (select embedding from public.reports_chunks where fulltext_id = 7 and chunk_index = 0)
from generate_series(2, 9) as number
"""

NOT_OF_THE_NEXT: tuple[tuple[Near, dict[str, Any]], ...] = (
    (QUERY, {"columns": ("none",)}),
    (QUERY, {"words": "any"}),
    (QUERY, {"where": "none = 1"}),
    (LikeRecord(-1), {}),
)


def test_what_another_generation_lacks_is_looked_for_in_the_next(
    connection: Connection, reports: Pipeline
) -> None:
    for near, fields in NOT_OF_THE_NEXT:
        with pytest.raises(UsageError):
            query.search(connection, reports, near, SearchRequest(**fields))
    connection.execute("delete from pgembed.pipelines")
    for near, fields in NOT_OF_THE_NEXT:
        with pytest.raises(PipelineReplaced):
            query.search(connection, reports, near, SearchRequest(**fields))
    with pytest.raises(PipelineReplaced):
        read_record(connection, reports, "1")


def test_nothing_is_missing_beside_a_record_that_gets_more_chunks_meanwhile(
    conninfo: str, connection: Connection, reports: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:

    def origin_of(pipeline: Pipeline, near: Near) -> Steps[Origin]:
        origin = yield from nearness.origin_of(pipeline, near)
        connection.execute(MORE_CHUNKS)
        return origin

    monkeypatch.setattr(query, "origin_of", origin_of)
    with connect(conninfo) as own:
        hits = query.search(own, reports, LikeRecord(7), SearchRequest(limit=5, threshold=-1))
    assert len(hits) == 5
    assert 7 not in {hit.key for hit in hits}
