"""Targets that store no texts: what is read is what would have been stored, or nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgqueue_embed.claim.process import Session
from pgqueue_embed.cli.search import NO_TEXT, show_hits
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
from pgqueue_embed.vector_search.near import LikeRecord
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.record import joined, read_record
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support.altering import begin
from tests.support.altering import embed as embed_generation
from tests.support.commands import pgembed
from tests.support.corpus import make_source, texts
from tests.support.fakes import fake_chunker, unit_vector
from tests.support.nasty import CONTROL, NASTY
from tests.support.oracle import assert_converged
from tests.support.pipelines import REPORTS, make_pipeline
from tests.support.rows import one_value
from tests.support.working import embed, embed_documents

pytestmark = pytest.mark.usefixtures("fake_next_model")

# Longer than a page, and than a row stays in one piece; a character that a tokenizer leaves out.
LONG = ("The pump stopped. 设备停止了 🙂 e\u0301\r\n" * 130, "💥" * 900, " \n\t ", "a\u0300" * 50)
HOSTILE = (*NASTY, *CONTROL, *LONG)

# Each way to make a document, with what beside it belongs to a record.
DOCUMENTS: dict[str, dict[str, Any]] = {
    "a column": {},
    "two columns": {"text_fields": ("title", "body")},
    "a template": {"template": "50 %: $title {0} $body"},
    "one chunk": {"chunking": "none", "chunk_tokens": 40_000, "overlap_tokens": 0},
    "a chunk template": {"chunk_template": "<$title>: $chunk", "copy_columns": ("title",)},
}

ROWS = """
select fulltext_id, chunk_index, start_char, end_char, tokens, text_chunk, embedding::text
from {} order by fulltext_id, chunk_index
"""


def rows(connection: Connection, relation: str) -> list[tuple[Any, ...]]:
    return connection.execute(ROWS.format(relation)).fetchall()


def fill(connection: Connection, seed: int) -> random.Random:
    """Make a source of hostile texts with hostile titles."""
    drawn = random.Random(seed)
    connection.execute("create table reports (id bigint primary key, title text, body text)")
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into reports values (%s, %s, %s)",
            [(n, drawn.choice((None, *NASTY)), text) for n, text in enumerate(HOSTILE)],
        )
    return drawn


CHANGES = (
    "update reports set body = '🙂' || body where id %% 5 = %s",
    "update reports set body = body || ' and so on' where id %% 5 = %s",
    "update reports set body = replace(body, 'pump', 'e\u0301') where id %% 5 = %s",
    "update reports set title = 'Another' where id %% 5 = %s",
    "delete from reports where id %% 5 = %s",
)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_is_read_is_what_is_stored_elsewhere_and_never_another_text(
    connection: Connection, session: Session, document: str
) -> None:
    drawn = fill(connection, seed=len(document))
    with_text = Table(schema="public", name="stored")
    options = DOCUMENTS[document]
    stored = make_pipeline(connection, name="stored", target=with_text, **options)
    read = make_pipeline(connection, text=False, **options)
    spec = read.spec
    chunker = fake_chunker(spec.chunk_tokens, spec.overlap_tokens)
    for change in (None, *drawn.sample(CHANGES, len(CHANGES))):
        before = {row[:2]: row[5] for row in rows(connection, "stored")}
        if change is not None:
            connection.execute(change, (drawn.randrange(5),))
        bodies = dict(connection.execute("select id, body from reports").fetchall())
        for row in rows(connection, "reports_chunks_chunks"):
            key, _, start, end, _, text, _ = row
            stands = bodies.get(key, "")[start:end] == before[row[:2]]
            is_body = not {"text_fields", "template"} & options.keys()
            assert text in (None, before[row[:2]]), change
            assert not is_body or (text is None) != stands, change
        for pipeline in (stored, read):
            embed(connection, session, pipeline, chunker=chunker)
            assert_converged(connection, pipeline.name)
        shown = rows(connection, "reports_chunks_chunks")
        assert shown == rows(connection, "stored")
    request = SearchRequest(limit=len(shown), threshold=-1.0)
    hits = search(connection, read, unit_vector("x"), request)
    in_sql = "select key, chunk_index, chunk from pgembed.search('reports', %s::real[], %s)"
    found = connection.execute(in_sql, (unit_vector("x").tolist(), len(shown))).fetchall()
    expected = {(str(key), index, text) for key, index, _, _, _, text, _ in shown}
    assert expected == {(hit.key_text, hit.chunk_index, hit.chunk) for hit in hits} == {*found}
    assert one_value(connection, "select count(*) > 30 from stored")


def test_table_has_no_more_than_it_needs_and_reuses_the_vectors_of_chunks_that_stay(
    connection: Connection, session: Session
) -> None:
    pipeline = embed_documents(connection, session, texts(3, chunks=4), text=False, ids=False)
    names = connection.execute("select * from reports_chunks limit 0").description or ()
    assert not {"text_chunk", "id", "chunk_id"} & {each.name for each in names}
    indexes = "select count(*) from pg_index where indrelid = 'reports_chunks'::regclass"
    assert one_value(connection, indexes) == 1
    connection.execute("update reports set body = body || ' It went on.' where id = 2")
    embed(connection, session, pipeline)
    reused, chunks = connection.execute(
        "select reused, chunks from pgembed.batches order by id desc limit 1"
    ).fetchone() or (0, 0)
    assert 0 < reused < chunks


@dataclass(frozen=True, kw_only=True)
class Searched:
    """A pipeline without texts whose record 2 has changed since it was embedded."""

    pipeline: Pipeline
    texts: tuple[str, ...]


@pytest.fixture
def searched(connection: Connection, session: Session) -> Searched:
    given = tuple(texts(40))
    pipeline = embed_documents(
        connection, session, given, text=False, view=True, chunk_tokens=64, overlap_tokens=0
    )
    connection.execute(
        "create index by_vector on reports_chunks using hnsw (embedding public.vector_cosine_ops)"
    )
    connection.execute("update reports set body = 'Quite another text.' where id = 2")
    return Searched(pipeline=pipeline, texts=given)


@pytest.mark.on_both_servers
def test_everything_that_reads_shows_the_text_or_that_there_is_none(
    connection: Connection, searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = searched.pipeline
    (first, *_) = [row[5] for row in rows(connection, "reports_chunks_chunks") if row[0] == 1]
    request = SearchRequest(
        limit=200, threshold=-1.0, rerank_top=200, columns=("text_chunk", "body")
    )
    hits = search(connection, pipeline, unit_vector(first), request)
    found = {(hit.key, hit.chunk_index): hit.chunk for hit in hits}
    assert hits[0].key == 1
    assert (hits[0].chunk, hits[0].columns["text_chunk"]) == (first, first)
    assert {text for (key, _), text in found.items() if key == 2} == {None}
    assert None not in {text for (key, _), text in found.items() if key != 2}
    order = search(connection, pipeline, unit_vector(first), request, lambda some: -lengths(some))
    assert [hit.rerank_score is None for hit in order] == [hit.chunk is None for hit in order]
    assert order[-1].chunk is None
    show_hits(order[-1:])
    assert NO_TEXT in capsys.readouterr().out
    vector = unit_vector(first).tolist()
    in_sql = connection.execute(
        "select key::bigint, chunk_index, chunk from pgembed.search('reports', %s::real[], 200)",
        (vector,),
    ).fetchall()
    assert {(key, index): text for key, index, text in in_sql} == found
    filtered = "select chunk from pgembed.search('reports', %s::real[], 9, %s)"
    wanted = f'{{"text_chunk": {{"like": "{first[:9]}%"}}}}'
    assert connection.execute(filtered, (vector, wanted)).fetchall() == [(first,)]
    assert joined(read_record(connection, pipeline, "1")).split() == searched.texts[0].split()
    assert {each.chunk for each in read_record(connection, pipeline, "2")} == {None}
    of_view = "select bool_and(text_chunk is null) from reports_chunks_view where fulltext_id = %s"
    assert [one_value(connection, of_view, (key,)) for key in (1, 2)] == [False, True]
    assert search(connection, pipeline, LikeRecord(2), SearchRequest(threshold=-1.0, mmr=0.5))


def lengths(some: Any) -> Any:
    import numpy as np

    return np.array([len(text) for text in some], np.float32)


@pytest.mark.on_both_servers
def test_index_of_vectors_is_used_and_texts_are_read_of_what_is_shown_alone(
    connection: Connection, searched: Searched
) -> None:
    query = f"'{unit_vector('x').tolist()}'"
    connection.execute("set enable_seqscan = off; set enable_sort = off")
    for relation in ("reports_chunks_chunks", "reports_chunks_view"):
        plan = connection.execute(
            "explain (analyze, costs off, timing off, summary off) select fulltext_id, text_chunk"
            f" from {relation} order by embedding operator(public.<=>) {query}::public.vector"
            " limit 3",
            prepare=False,
        ).fetchall()
        lines = "\n".join(line for (line,) in plan)
        assert "Index Scan using by_vector" in lines, lines
        assert "SubPlan" in lines
        read = [line for (line,) in plan if "Subquery Scan on present" in line]
        assert all("loops=3)" in line for line in read), lines
    assert searched.pipeline.spec.text is False


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "words": ({"lexical": True}, "--lexical indexes the words of texts that are stored"),
    "a column": (
        {"into_column": "vector", "chunking": "none", "target": REPORTS},
        "--no-text belongs to a target table",
    ),
    "a foreign key": (
        {"foreign_key": True, "ids": False},
        "--foreign-key takes chunks along when a key changes",
    ),
    "a copied column": (
        {"copy_columns": ("body",), "columns": {"text_chunk": "body"}},
        "--copy-columns body: the target table has a column of that name",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_go_with_it_is_refused(connection: Connection, what: str) -> None:
    options, said = REFUSED[what]
    make_source(connection, texts(1))
    if "columns" in options:
        from pgqueue_embed.pipeline.target_columns import TargetColumns

        options = {**options, "columns": TargetColumns().renamed(options["columns"])}
    with pytest.raises(UsageError, match=said):
        make_pipeline(connection, text=False, **options)
    assert one_value(connection, "select count(*) from pgembed.pipelines") == 0


def test_words_are_refused_with_the_way_to_them(conninfo: str, connection: Connection) -> None:
    make_pipeline(connection, make_source(connection, texts(1)), text=False)
    way = "pgembed alter reports --text"
    for command in (("index", "reports", "--lexical"), ("alter", "reports", "--lexical")):
        ran = pgembed(conninfo, *command)
        assert way in str(ran.error), command
    pipeline = load_pipeline(connection, "reports")
    with pytest.raises(UsageError, match=way):
        search(connection, pipeline, unit_vector("x"), SearchRequest(words="x"))


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
