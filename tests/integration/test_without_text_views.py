"""Views of targets that store no texts: who may read them, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.doctor.pipeline import check_tables
from pgqueue_embed.errors import MissingRight, UsageError
from pgqueue_embed.lifecycle.alter import Changes, abort, alter
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.lifecycle.follow_source import follow_source
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.record import read_record
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support.altering import begin
from tests.support.altering import embed as embed_generation
from tests.support.corpus import texts
from tests.support.fakes import unit_vector
from tests.support.oracle import assert_converged
from tests.support.rows import one_value
from tests.support.working import embed_documents

pytestmark = pytest.mark.usefixtures("fake_next_model")


def relations(connection: Connection) -> set[str]:
    found = connection.execute(
        "select relname from pg_class where relnamespace = 'public'::regnamespace"
        " and relkind in ('r', 'v', 'p')"
    )
    return {name for (name,) in found} - {"reports"}


@pytest.mark.on_both_servers
def test_generations_come_and_go_with_their_views(connection: Connection, session: Session) -> None:
    name = "ü" * 25 + "_chunks"
    stem = f"{name[:-7]}"
    table = Table(schema="public", name=name)
    pipeline = embed_documents(connection, session, texts(12, chunks=2), target=table, lexical=True)
    view = next_view(name)
    connection.execute(f'grant select (id, text_chunk, tokens) on "{name}" to public')
    kinds = (
        (Changes(text=False, lexical=False, ids=False), {name, view}),
        (Changes(chunk_tokens=8, overlap_tokens=0), {name, view}),
        (Changes(vector_type="halfvec", ids=True), {name, view}),
        (Changes(text=True, ids=False), {name}),
    )
    for changes, wanted in kinds:
        embed_generation(session, begin(connection, pipeline, changes))
        assert view_of_next(connection) == set()
        pipeline = switch(connection, pipeline)
        assert relations(connection) == wanted, stem
        assert_converged(connection, "reports")
        if view in wanted:
            assert one_value(
                connection, f"select count(*) > 12 from \"{view}\" where text_chunk <> ''"
            )
    assert has_right_of_column(connection, name, "tokens")
    assert abort_leaves_nothing(connection, pipeline) == {name}
    drop_pipeline(connection, pipeline, delete_vectors=True)
    assert relations(connection) == set()


def has_right_of_column(connection: Connection, table: str, column: str) -> bool:
    query = (
        "select attacl is not null from pg_attribute where attrelid = %s::regclass and attname = %s"
    )
    return bool(one_value(connection, query, (f'"{table}"', column)))


def next_view(table: str) -> str:
    """Return the name of the view of a table, as PostgreSQL would cut it."""
    return table.encode()[: 63 - len("_chunks")].decode(errors="ignore") + "_chunks"


def view_of_next(connection: Connection) -> set[str]:
    return {name for name in relations(connection) if name.endswith("_next_chunks")}


def abort_leaves_nothing(connection: Connection, pipeline: Pipeline) -> set[str]:
    alter(connection, pipeline, Changes(text=False))
    abort(connection, pipeline)
    return relations(connection)


def test_names_and_views_of_others_are_left_alone(connection: Connection, session: Session) -> None:
    pipeline = embed_documents(connection, session, texts(3), view=True)
    connection.execute("create view reports_chunks_chunks as select 1 as mine")
    embed_generation(session, begin(connection, pipeline, Changes(text=False)))
    with pytest.raises(UsageError, match="reports_chunks_chunks exists already"):
        switch(connection, pipeline)
    assert one_value(connection, "select mine from reports_chunks_chunks") == 1
    connection.execute(
        "drop view reports_chunks_chunks; create view mine as select text_chunk from reports_chunks"
    )
    with pytest.raises(UsageError, match=r"view public\.mine cannot read the new vectors"):
        switch(connection, pipeline)
    connection.execute("drop view mine")
    pipeline = switch(connection, pipeline)
    connection.execute("create view mine as select text_chunk from reports_chunks_chunks")
    embed_generation(session, begin(connection, pipeline, Changes(text=True)))
    with pytest.raises(UsageError, match=r"cannot be replaced: view public\.mine depends on"):
        switch(connection, pipeline)
    assert one_value(connection, "select count(text_chunk) > 2 from mine")
    abort(connection, pipeline)
    connection.execute(
        "drop view mine, reports_chunks_chunks; create view reports_chunks_chunks as select 1 mine"
    )
    embed_generation(session, begin(connection, pipeline))
    with pytest.raises(UsageError, match="reports_chunks_chunks exists already"):
        switch(connection, pipeline)
    drop_pipeline(connection, pipeline, delete_vectors=True)
    assert one_value(connection, "select mine from reports_chunks_chunks") == 1


def test_view_that_is_in_the_way_of_the_source_is_made_again(
    connection: Connection, session: Session
) -> None:
    pipeline = embed_documents(
        connection, session, texts(3), text=False, view=True, foreign_key=True
    )
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        connection.execute("alter table reports alter id type numeric")
    connection.execute(
        "drop view reports_chunks_chunks, reports_chunks_view;"
        " alter table reports alter body type varchar(2000)"
    )
    gone = [each for each in check_tables(connection, pipeline) if "is gone" in each.finding]
    assert [each.fix for each in gone] == [
        "pgembed alter reports --follow-source",
        "pgembed alter reports --follow-source, or --no-view",
    ]
    assert search(connection, pipeline, unit_vector("x"), SearchRequest(threshold=-1.0))
    follow_source(connection, pipeline)
    assert relations(connection) >= {"reports_chunks_chunks", "reports_chunks_view"}
    connection.execute("drop view reports_chunks_chunks")
    assert follow_source(connection, load_pipeline(connection, "reports")) == []
    drop_pipeline(connection, load_pipeline(connection, "reports"), delete_vectors=False)
    assert one_value(connection, "select count(text_chunk) > 2 from reports_chunks_chunks")


@pytest.fixture
def reader(conninfo: str, connection: Connection) -> Iterator[Callable[[], Any]]:
    """What opens a session of a role that may search, and may not read the source yet."""
    connection.execute(
        "create role reader login password 'x'; grant usage on schema pgembed to reader"
    )
    own_tables = "pgembed.pipelines, pgembed.vector_indexes, pgembed._yoyo_migration"
    connection.execute(f"grant select on {own_tables} to reader")
    yield lambda: connect(make_conninfo(conninfo, user="reader", password="x"))
    connection.execute("drop owned by reader cascade; drop role reader")


def grants_in(error: MissingRight) -> list[str]:
    return str(error).partition("; missing: ")[2].split("; ")


@pytest.mark.on_both_servers
def test_reader_needs_rights_on_the_source_and_sees_what_its_policies_let_him(
    connection: Connection, session: Session, reader: Callable[[], Any]
) -> None:
    pipeline = embed_documents(connection, session, texts(6), text=False)
    connection.execute("alter table reports add secret text")
    connection.execute("grant select on reports_chunks, reports_chunks_chunks to reader")
    everything = SearchRequest(limit=50, threshold=-1.0)
    with reader() as own:
        with pytest.raises(MissingRight) as refused:
            search(own, pipeline, unit_vector("x"), everything)
        assert grants_in(refused.value) == ["grant select (id, body) on public.reports to reader"]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            own.execute("select text_chunk from public.reports_chunks_chunks")
        connection.execute("; ".join(grants_in(refused.value)))
        for asked in (SearchRequest(columns=("secret",)), SearchRequest(where="secret > ' body'")):
            with pytest.raises(MissingRight) as refused:
                search(own, pipeline, unit_vector("x"), asked)
            assert grants_in(refused.value) == ["grant select (secret) on public.reports to reader"]
        assert read_record(own, pipeline, "1")[0].chunk
        connection.execute("create policy odd on reports using (id % 2 = 1)")
        connection.execute("alter table reports enable row level security")
        hits = search(own, pipeline, unit_vector("x"), everything)
        assert {hit.key % 2 for hit in hits if hit.chunk is not None} == {1}
        assert {hit.key % 2 for hit in hits if hit.chunk is None} == {0}
        in_sql = (
            "select key::bigint %% 2, chunk is null from pgembed.search('reports', %s::real[], 50)"
        )
        found = own.execute(in_sql, (unit_vector("x").tolist(),)).fetchall()
        assert set(found) == {(1, False), (0, True)}
        own.execute("set row_security = on")
        seen = own.execute(
            "select fulltext_id % 2, text_chunk is null from public.reports_chunks_chunks"
        )
        assert set(seen.fetchall()) == {(1, False), (0, True)}
