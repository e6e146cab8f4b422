"""Targets that store no texts: what is read is what would have been stored, or nothing."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.cli.search import NO_TEXT, show_hits
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search.near import LikeRecord
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.record import joined, read_record
from pgqueue_embed.vector_search.request import SearchRequest
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
