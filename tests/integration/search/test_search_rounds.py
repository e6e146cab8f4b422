"""Searches that come together find what each of them finds alone, and fail alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import pytest
from psycopg import sql

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.packed import pack_reals
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.db.steps import Step, Steps, run
from pgqueue_embed.errors import DatabaseUnavailable
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.search_server import paces, search_rounds
from pgqueue_embed.search_server.bodies import search_of
from pgqueue_embed.search_server.service import SearchService
from pgqueue_embed.vector_search.index import plan
from pgqueue_embed.vector_search.index_build import build_index
from pgqueue_embed.vector_search.index_plan import IndexOptions
from pgqueue_embed.vector_search.lexical_index import build_lexical_index
from pgqueue_embed.vector_search.query import search_together
from pgqueue_embed.vector_search.relation import relation_of
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support.conditions import wait_until
from tests.support.fakes import unit_vector
from tests.support.pipelines import make_pipeline
from tests.support.searching import SEARCHED, ask
from tests.support.serving import FakeEncoder

PREPARED = SEARCHED

# Rounds that it may have at once.
OF_ONE_PIPELINE = search_rounds.MOST_ROUNDS - 1

SHAPES: tuple[dict[str, Any], ...] = (
    {},
    {"limit": 7, "offset": 3, "threshold": -1.0},
    {"limit": 200, "threshold": 0.1},
    {"columns": ["made", "kind"], "threshold": -1.0},
    {"per_record": True, "threshold": 0.2, "limit": 60},
    {"mmr": 0.3, "rerank_top": 20},
    {"hybrid": True},
    {"where": "kind = 7", "columns": ["kind"]},
    {"where": "set_config('hnsw.ef_search', '1', false) is not null"},
    {"filter": {"kind": [7, 8]}},
    {"filter": {"none": 1}},
    {"where": "kind / 0 = 1"},
    {"columns": ["none"]},
    {"limit": 2_000},
)


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many searches each round has had; all that wait are one round."""
    sizes: list[int] = []

    def counted(connection: Any, pipeline: Any, near: Sequence[Any], *others: Any) -> Any:
        sizes.append(len(near))
        return search_together(connection, pipeline, near, *others)

    monkeypatch.setattr(search_rounds, "search_together", counted)
    monkeypatch.setattr(paces, "round_size", lambda _paces: 1_000)
    return sizes


def asked(shape: dict[str, Any], number: int) -> dict[str, Any]:
    return {"pipeline": "reports", "query": f"chunk 0 of {number}", **shape}


async def outcome(service: SearchService, given: dict[str, Any]) -> object:
    """Return what a search finds, or how it fails."""
    try:
        return await service.find(search_of(given))
    except Exception as error:  # noqa: BLE001 - it is what is compared
        return type(error), str(error)


async def at_once(service: SearchService, given: Sequence[dict[str, Any]]) -> list[object]:
    return await asyncio.gather(*(outcome(service, each) for each in given))


@pytest.mark.on_both_servers
def test_searches_that_come_together_find_what_each_finds_alone(
    conninfo: str, connection: Connection, indexed: Pipeline, rounds: list[int]
) -> None:
    build_lexical_index(connection, indexed)
    given = [asked(shape, number) for number in range(1, 9) for shape in SHAPES]
    with closing(SearchService(conninfo, FakeEncoder())) as service:

        async def both() -> tuple[list[object], list[object]]:
            alone = [await outcome(service, each) for each in given]
            assert set(rounds) == {1}
            rounds.clear()
            return alone, await at_once(service, given)

        alone, found = asyncio.run(both())
    for each, expected, answer in zip(given, alone, found, strict=True):
        assert answer == expected, each
    assert max(rounds) == 8, "those of one shape are one round"
    assert len(rounds) < len(given)


def test_a_search_that_fails_fails_alone(
    conninfo: str, connection: Connection, reports: Pipeline, rounds: list[int]
) -> None:
    given = [asked({"columns": ["share"], "limit": 400}, number) for number in range(16)]
    build_index(connection, reports, plan(connection, reports, IndexOptions()))
    # So that the column is computed of what the index names, and of nothing else.
    connection.execute(
        "alter table public.reports add column share integer"
        " generated always as (1000 / (made - date '2000-01-01')) virtual;"
        f"alter database {connection.info.dbname} set enable_sort = off"
    )

    async def failing(service: SearchService) -> None:
        before = await at_once(service, given)
        # Divided by zero: what finds this record cannot be read.
        connection.execute("update public.reports set made = '2000-01-01' where id = 700")
        rounds.clear()
        after = await at_once(service, given)
        assert rounds[0] == len(given)
        failed = [each for each in after if not isinstance(each, list)]
        assert 0 < len(failed) < len(given)
        assert all(
            is_now == was or is_now in failed for was, is_now in zip(before, after, strict=True)
        )
        assert after == [await outcome(service, each) for each in given]

    with closing(SearchService(conninfo, FakeEncoder())) as service:
        asyncio.run(failing(service))


WAITING = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"


@contextmanager
def table_locked(conninfo: str) -> Iterator[None]:
    with connect(conninfo) as other, other.transaction(force_rollback=True):
        other.execute("lock table public.reports_chunks in access exclusive mode")
        yield


async def until(condition: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, what)


def test_who_leaves_takes_nobody_along(
    conninfo: str, connection: Connection, reports: Pipeline, rounds: list[int]
) -> None:
    given = [asked({}, number) for number in range(4)]

    async def begun(service: SearchService) -> list[asyncio.Task[object]]:
        tasks = [asyncio.ensure_future(outcome(service, each)) for each in given]
        await until(lambda: connection.value(WAITING), "their round waits for the table")
        return tasks

    async def leaving(service: SearchService) -> None:
        expected = await at_once(service, given)
        with table_locked(conninfo):
            first, *others = await begun(service)
            first.cancel()
            await asyncio.wait([first])
            assert connection.value(WAITING), "the others are searched for"
        assert await asyncio.gather(*others) == expected[1:]
        with table_locked(conninfo):
            for each in await begun(service):
                each.cancel()
            await until(lambda: not connection.value(WAITING), "PostgreSQL has ended it")

    with closing(SearchService(conninfo, FakeEncoder())) as service:
        asyncio.run(leaving(service))
    assert max(rounds) == 4


def entered(monkeypatch: pytest.MonkeyPatch, wait: Callable[[int], object]) -> list[int]:
    """Call `wait` with the number of searches of each round that begins, and list the limits."""
    limits: list[int] = []

    def waiting(
        connection: Any, pipeline: Any, near: Sequence[Any], request: Any, *others: Any
    ) -> Any:
        limits.append(request.limit)
        wait(len(near))
        return search_together(connection, pipeline, near, request, *others)

    monkeypatch.setattr(search_rounds, "search_together", waiting)
    return limits


def sized(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(paces, "round_size", lambda _paces: size)


def test_what_gathered_for_a_large_round_is_searched_for_side_by_side_in_small_ones(
    conninfo: str, reports: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, others = threading.Event(), threading.Barrier(5, timeout=20)
    sized(monkeypatch, 1_000)
    limits = entered(monkeypatch, lambda _: others.wait() if first.is_set() else first.wait(20))

    async def gathering(service: SearchService) -> None:
        tasks = [asyncio.ensure_future(outcome(service, asked({}, 0)))]
        await until(lambda: limits, "the first is searched for")
        tasks += [asyncio.ensure_future(outcome(service, asked({}, each))) for each in range(1, 6)]
        await asyncio.sleep(0.1)  # they have gathered
        sized(monkeypatch, 1)
        first.set()
        assert all(isinstance(each, list) for each in await asyncio.gather(*tasks))

    with closing(SearchService(conninfo, FakeEncoder())) as service:
        asyncio.run(gathering(service))


def test_those_of_a_round_that_failed_leave_a_turn_to_others(
    conninfo: str, reports: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_asked = threading.Event()
    sized(monkeypatch, 1_000)

    def wait(searches: int) -> None:
        if searches > 1:
            raise ValueError("one of them, who knows which")
        is_asked.wait(20)

    limits = entered(monkeypatch, wait)

    async def failing(service: SearchService) -> None:
        await service.pipeline("reports")
        many = asyncio.ensure_future(at_once(service, [asked({}, each) for each in range(40)]))
        await until(lambda: len(limits) == 1 + OF_ONE_PIPELINE, "all its sessions are taken")
        other = asyncio.ensure_future(outcome(service, asked({"limit": 3}, 0)))
        await asyncio.sleep(0.1)  # it waits
        is_asked.set()
        assert isinstance(await other, list)
        assert all(isinstance(each, list) for each in await many)
        assert limits.index(3) < 1 + 2 * OF_ONE_PIPELINE

    with closing(SearchService(conninfo, FakeEncoder())) as service:
        asyncio.run(failing(service))


def test_slow_searches_of_one_pipeline_leave_sessions_to_others_and_to_what_is_no_search(
    conninfo: str, connection: Connection, reports: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pipeline(connection, name="others", target=Table(schema="public", name="others_chunks"))
    is_over = threading.Event()
    sized(monkeypatch, 1)

    def find(connection: Any, pipeline: Any, *others: Any) -> Any:
        if pipeline.name == "reports":
            is_over.wait(60)
        return search_together(connection, pipeline, *others)

    monkeypatch.setattr(search_rounds, "search_together", find)

    async def beside_slow_ones(service: SearchService) -> None:
        await service.pipeline("reports")
        slow = asyncio.ensure_future(at_once(service, [asked({}, each) for each in range(40)]))
        await asyncio.sleep(0.1)  # they have all that they may have
        try:
            other = {**asked({}, 0), "pipeline": "others"}
            assert await asyncio.wait_for(outcome(service, other), 20) == []
            assert await asyncio.wait_for(service.record("reports", "1"), 20)
            assert len(await asyncio.wait_for(service.pipelines(anew=True), 20)) == 2
        finally:
            is_over.set()
        assert all(isinstance(each, list) for each in await slow)

    with closing(SearchService(conninfo, FakeEncoder())) as service:
        asyncio.run(beside_slow_ones(service))


def test_nobody_waits_for_a_server_that_was_closed(
    conninfo: str, reports: Pipeline, rounds: list[int]
) -> None:
    async def closed(service: SearchService) -> None:
        await outcome(service, asked({}, 0))
        with table_locked(conninfo):
            busy = [asyncio.ensure_future(service.record("reports", "1")) for _ in range(8)]
            await asyncio.sleep(0.1)
            waiting = asyncio.ensure_future(service.find(search_of(asked({}, 1))))
            await asyncio.sleep(0.1)
            service.close()
            await asyncio.wait([waiting], timeout=20)
            assert waiting.cancelled()
        await asyncio.wait(busy)

    asyncio.run(closed(SearchService(conninfo, FakeEncoder())))


def test_a_database_that_is_not_there_is_nobodys_own(
    conninfo: str, reports: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    sized(monkeypatch, 1_000)

    def wait(_searches: int) -> None:
        raise DatabaseUnavailable("it is being restarted")

    limits = entered(monkeypatch, wait)

    async def failing(service: SearchService) -> None:
        await service.pipeline("reports")
        found = await at_once(service, [asked({}, each) for each in range(9)])
        assert found == 9 * [(DatabaseUnavailable, "it is being restarted")]

    with closing(SearchService(conninfo, FakeEncoder())) as service:
        asyncio.run(failing(service))
    assert len(limits) == 1


@pytest.mark.parametrize("indexed", ["hnsw"], indirect=True)
def test_a_vector_of_a_round_is_made_once_and_not_for_each_chunk(
    connection: Connection, indexed: Pipeline
) -> None:
    relation = relation_of(connection, indexed, SearchRequest())
    assert relation is not None
    assert relation.of_many is not None
    vectors = pack_reals(np.concatenate([unit_vector(text) for text in ("one", "other")]))

    def explained() -> Steps[str]:
        rows = yield Step(f"explain {relation.of_many}", (vectors, 5, 2), raw=True)
        return "\n".join(line for (line,) in rows)

    plan = run(connection, explained())
    assert "<=> asked.vector)" in plan, plan


@pytest.mark.parametrize("indexed", ["hnsw"], indirect=True)
def test_nothing_is_compiled_for_looks_into_an_index(
    conninfo: str, connection: Connection, indexed: Pipeline
) -> None:
    name = sql.Identifier(connection.info.dbname)
    connection.execute(sql.SQL("alter database {} set jit = on").format(name))
    assert ask(conninfo, indexed, where="current_setting('jit') = 'off'")
