"""A role with the documented grants of who searches, and nothing else, finds what there is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgqueue_embed.db.migrate import check_schema
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import PgembedError
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search.lexical_index import build_lexical_index
from tests.support.corpus import texts
from tests.support.documents import marked_block
from tests.support.example_pipeline import event_pipeline
from tests.support.searching import QUERY, ask
from tests.support.working import drain, open_session

DOCS = Path(__file__).parents[3] / "docs"
SEARCH = "select * from pgembed.search('reports', %s::real[], 3, '{\"mdr_text_key\": {\"<\": 5}}')"


@pytest.fixture
def searcher(connection: Connection, conninfo: str) -> Iterator[str]:
    """The connection string of a role that may search, in a database with vectors."""
    pipeline = event_pipeline(connection, list(texts(9)))
    connection.execute(
        "select pgembed.enqueue('reports', array(select 1 + n from generate_series(0, 8) n))"
    )
    with open_session(conninfo) as session:
        drain(session, pipeline)
    build_lexical_index(connection, pipeline)
    block = marked_block(DOCS / "security.md", "searcher: executed by the tests", "sql")
    connection.execute(block)
    connection.execute("create role assistant login password 'secret' in role pgembed_searcher")
    yield make_conninfo(conninfo, user="assistant", password="secret")
    connection.execute("drop owned by assistant, pgembed_searcher")
    connection.execute("drop role assistant, pgembed_searcher")


@pytest.mark.on_both_servers
def test_documented_grants_are_enough_to_search(searcher: str) -> None:
    with connect(searcher) as role:
        check_schema(role)
        pipeline = load_pipeline(role, "reports")
        assert len(role.execute(SEARCH, (QUERY.tolist(),)).fetchall()) == 3
    assert len(ask(searcher, pipeline, where="mdr_text_key < 5", per_record=True)) == 4
    words = ask(searcher, pipeline, limit=1)[0].chunk
    assert ask(searcher, pipeline, words=words)[0].chunk == words


def test_and_for_nothing_else(searcher: str) -> None:
    with connect(searcher) as role:
        for statement in (
            "select from pgembed.work",
            "update pgembed.pipelines set state = 'paused'",
            "select pgembed.enqueue('reports', array['1'])",
            "delete from public.event_text_vectors",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                role.execute(statement)


def test_of_vectors_in_a_column_the_columns_that_are_read_are_enough_and_named(
    connection: Connection, conninfo: str, letters: Pipeline, searcher: str
) -> None:
    connection.execute("alter table public.letters add column made date")
    for request, columns in (({}, "a, b, body, embedding"), ({"columns": ("made",)}, "made")):
        with pytest.raises(PgembedError) as raised:
            ask(searcher, letters, **request)
        grant = f"grant select ({columns}) on public.letters to assistant"
        assert str(raised.value).endswith(f"missing: {grant}")
        connection.execute(grant)
        assert ask(searcher, letters, **request)


def test_a_table_of_a_condition_that_may_not_be_read_is_named_with_its_grant(
    connection: Connection, searcher: str
) -> None:
    connection.execute('create schema "Shop"; create table "Shop"."My orders" (id bigint)')
    with connect(searcher) as role:
        pipeline = load_pipeline(role, "reports")
    where = 'mdr_text_key in (select id from "Shop"."My orders")'
    for missing in ('usage on schema "Shop"', 'select on "Shop"."My orders"'):
        with pytest.raises(PgembedError, match=f"missing: grant {missing} to assistant"):
            ask(searcher, pipeline, where=where)
        connection.execute(f"grant {missing} to assistant")
    assert ask(searcher, pipeline, where=where) == []
    connection.execute('drop schema "Shop" cascade')


def test_the_schema_of_the_extension_is_named_with_its_grant(
    connection: Connection, searcher: str
) -> None:
    connection.execute('create schema "Of vectors"; alter extension vector set schema "Of vectors"')
    missing = 'grant usage on schema "Of vectors" to assistant'
    with connect(searcher) as role:
        pipeline = load_pipeline(role, "reports")
    with pytest.raises(PgembedError, match=f"missing: {missing}$"):
        ask(searcher, pipeline)
    connection.execute(missing)
    assert ask(searcher, pipeline)
