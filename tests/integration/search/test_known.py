"""A search goes by what the one before has found, and answers as one that knows nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from psycopg_pool import ConnectionPool

from pgqueue_embed import Database, Hit, PgembedError, search
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import MissingRight, NotFound, UntrustedCode
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search import asked, known
from pgqueue_embed.vector_search.query import search as search_over
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support.counting import counting_connection
from tests.support.searching import QUERY, SEARCHED

PREPARED = SEARCHED

Way = Callable[..., list[Hit]]
Outcome = list[tuple[float, list[str]]] | tuple[type, str]

BY_VECTOR: dict[str, Any] = {"vector": QUERY, "threshold": -1.0, "limit": 3}
ASKED: tuple[dict[str, Any], ...] = (
    BY_VECTOR,
    {**BY_VECTOR, "columns": ["made"]},
    {**BY_VECTOR, "where": "kind = 7"},
    {**BY_VECTOR, "mmr": 0.5},
    {"record": 7, "limit": 2},
    {"query": "words", "limit": 2},
)

# Each is undone by the next one, or stays.
CHANGES = (
    "alter table reports rename made to day",
    "alter table reports rename day to made",
    "create schema elsewhere; alter extension vector set schema elsewhere",
    "create index far on reports_chunks using hnsw (embedding elsewhere.vector_cosine_ops)",
    "drop index far",
    "alter table reports_chunks rename to moved",
    "alter table moved rename to reports_chunks",
    "alter table reports_chunks alter text_chunk type varchar",
    "update pgembed.pipelines set query_prompt = 'a longer prompt: '",
    "update pgembed.pipelines set name = 'renamed'",
    "update pgembed.pipelines set name = 'reports'",
    "delete from reports_chunks where fulltext_id = 7",
)


@pytest.fixture(autouse=True)
def _known_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "KNOWN_SECONDS", 3600.0)

    def encode(prompt: str | None, _query: str, _dimensions: int | None) -> NDArray[np.float32]:
        angle = len(prompt or "")
        return np.array([np.cos(angle), np.sin(angle), *[0] * 6], np.float32)

    def encoder_of(pipeline: Pipeline) -> object:
        return SimpleNamespace(encode=partial(encode, pipeline.spec.query_prompt))

    monkeypatch.setattr(asked, "encoder_of", encoder_of)


@pytest.fixture
def ways(conninfo: str, reports: Pipeline) -> Iterator[dict[str, Way]]:
    """How a program may search; what it knows stays."""
    with ExitStack() as stack:
        database = Database(conninfo)
        stack.callback(database.close)
        face = database.pipeline(reports.name)
        own = stack.enter_context(psycopg.connect(conninfo, autocommit=True))
        pool = stack.enter_context(ConnectionPool(conninfo, min_size=1, max_size=1))
        yield {
            "kept sessions": partial(search, face),
            "its connection": partial(search, face, connection=own),
            "its pool": partial(search, face, pool=pool),
        }


def outcome(find: Way, given: dict[str, Any]) -> Outcome:
    """Return what was found, or the error; chunks of one score may come in any order."""
    try:
        return [(hit.score, list(hit.columns)) for hit in find(**given)]
    except PgembedError as error:
        return type(error), str(error)


def ignorant(conninfo: str) -> Way:
    """Search as nobody has before."""
    return partial(search, Database(conninfo).pipeline("reports"))


@pytest.mark.on_both_servers
def test_whatever_changes_a_search_finds_what_one_that_knows_nothing_finds(
    conninfo: str, connection: Connection, reports: Pipeline, ways: dict[str, Way]
) -> None:
    nobody = Database(conninfo).pipeline("reports")
    for change in ("", *CHANGES):
        connection.execute(change)
        for given in ASKED:
            nobody.sessions.known = known.Known()
            expected = outcome(partial(search, nobody), given)
            for name, way in ways.items():
                assert outcome(way, given) == expected, (change, name, given)
    drop_pipeline(connection, load_pipeline(connection, "reports"), delete_vectors=False)
    for way in ways.values():
        with pytest.raises(NotFound):
            way(**BY_VECTOR)


def test_what_is_known_is_not_asked_again(conninfo: str, reports: Pipeline) -> None:
    face = Database(conninfo).pipeline(reports.name)
    with counting_connection(conninfo) as own:
        sent: list[int] = []
        for given in (BY_VECTOR, BY_VECTOR, ASKED[1], ASKED[1], BY_VECTOR):
            own.forget()
            search(face, connection=own, **given)
            sent.append(own.round_trips)
        # BEGIN, what one may see, a savepoint, the search, whether all is as it was, ROLLBACK.
        assert sent[1] == sent[3] == sent[4] == 6
        assert sent[2] > 6, "of other columns nothing was known"


TRAP = """
create role less_trusted;
grant create on schema public to less_trusted;
grant usage on schema pgembed to less_trusted;
grant select on all tables in schema pgembed, public to less_trusted;
set role less_trusted;
create function public.trap(int) returns int immutable language sql as 'select $1';
reset role;
alter table reports_chunks owner to less_trusted;
create index on reports_chunks (public.trap(chunk_index))
"""


@pytest.fixture
def trapped(connection: Connection, reports: Pipeline) -> Iterator[str]:
    """A role with fewer rights, whose code every search would run with those of its own."""
    connection.execute(TRAP)
    yield "less_trusted"
    connection.execute("reassign owned by less_trusted to current_user")
    connection.execute("drop owned by less_trusted; drop role less_trusted")


def test_what_a_transaction_of_a_program_sees_is_not_known_after_it(
    conninfo: str, trapped: str, reports: Pipeline
) -> None:
    face = Database(conninfo).pipeline(reports.name)
    with psycopg.connect(conninfo) as own:
        find = partial(search, face, connection=own, **BY_VECTOR)
        own.execute(f"reassign owned by {trapped} to current_user")
        assert find()
        own.rollback()
        with pytest.raises(UntrustedCode, match="trap"):
            find()


def test_what_one_role_may_run_is_no_leave_for_another(
    conninfo: str, connection: Connection, trapped: str, reports: Pipeline
) -> None:
    face = Database(conninfo).pipeline(reports.name)
    with psycopg.connect(conninfo, autocommit=True) as own:
        find = partial(search, face, connection=own, **BY_VECTOR)
        own.execute(f"set role {trapped}")
        assert find() == find() != []
        own.execute("reset role")
        with pytest.raises(UntrustedCode, match="trap"):
            find()
        own.execute(f"set role {trapped}")
        connection.execute(f"revoke select on pgembed.pipelines from {trapped}")
        with pytest.raises(MissingRight, match=r"grant select on pgembed\.pipelines"):
            find()


def test_tables_that_may_become_a_trap_are_looked_at_each_time(
    connection: Connection, reports: Pipeline
) -> None:
    connection.execute("create role less_trusted; alter table reports_chunks owner to less_trusted")
    try:
        found = known.Known()
        assert search_over(connection, reports, QUERY, SearchRequest(), known=found)
        assert found._kept == {}
    finally:
        connection.execute("reassign owned by less_trusted to current_user; drop role less_trusted")


def test_what_clients_ask_for_does_not_grow_without_an_end(
    connection: Connection, reports: Pipeline
) -> None:
    found = known.Known()
    search_over(connection, reports, QUERY, SearchRequest(), known=found)
    [kept] = found._kept.values()
    found._kept.update({(number,): kept for number in range(known.MOST_KEPT)})
    search_over(connection, reports, QUERY, SearchRequest(columns=("made",)), known=found)
    assert len(found._kept) == 1
