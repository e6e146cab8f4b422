"""A source, or columns of it, that have other names: said in one line, and followed.

Of a pipeline that stores no texts, every search reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection
from pgqueue_embed.doctor.pipeline import check_tables
from pgqueue_embed.errors import PgembedError, UsageError
from pgqueue_embed.lifecycle.alter import Changes
from pgqueue_embed.lifecycle.follow_source import follow_source
from pgqueue_embed.pipeline.catalog import load_pipeline, load_pipelines
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.capture import install
from pgqueue_embed.vector_search.near import LikeRecord
from pgqueue_embed.vector_search.query import has_vectors, search
from pgqueue_embed.vector_search.record import read_record
from pgqueue_embed.vector_search.request import SearchRequest
from pgqueue_embed.verification import reread
from tests.support.altering import begin
from tests.support.corpus import make_source, texts
from tests.support.fakes import unit_vector
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.rows import one_value
from tests.support.working import drain, embed

pytestmark = pytest.mark.usefixtures("fake_next_model")

ALL = SearchRequest(limit=50, threshold=-1.0)
VECTOR = unit_vector("x")
WAY_OUT = "pgembed alter reports --follow-source"


def in_sql(connection: Connection, _: Pipeline) -> list[str | None]:
    query = "select chunk from pgembed.search('reports', %s::real[], 50)"
    return [chunk for (chunk,) in connection.execute(query, (VECTOR.tolist(),))]


# Whatever shows the texts of a pipeline.
READS: dict[str, Callable[[Connection, Pipeline], list[str | None]]] = {
    "a search": lambda connection, pipeline: [
        hit.chunk for hit in search(connection, pipeline, VECTOR, ALL)
    ],
    "a search for a record's like": lambda connection, pipeline: [
        hit.chunk for hit in search(connection, pipeline, LikeRecord(2), ALL)
    ],
    "a search with a condition": lambda connection, pipeline: [
        hit.chunk for hit in search(connection, pipeline, VECTOR, replace(ALL, where="tokens > 0"))
    ],
    "a record": lambda connection, pipeline: [
        each.chunk for each in read_record(connection, pipeline, "1")
    ],
    "SQL": in_sql,
    "verification": lambda connection, pipeline: [
        each.document for each in reread._read(connection, pipeline, ["1", "2"])
    ],
}

# Each leaves the source as the next finds it.
RENAMES = {
    "alter table {source} rename column body to words": "body is words",
    "alter table {source} rename column id to number": "id is number",
    "alter table {source} rename title to heading; alter table {source} rename words to body": (
        "title is heading, words is body"
    ),
    "alter table {source} rename to documents": "public.reports is public.documents",
    "alter table {source} set schema moved": "public.documents is moved.documents",
    "alter table {source} rename to papers; alter table moved.papers rename number to id;"
    " alter table moved.papers rename body to text": (
        "moved.documents is moved.papers, number is id, body is text"
    ),
}


def make_embedded(connection: Connection, session: Session, **fields: Any) -> Pipeline:
    """Make a pipeline with capture on over records with titles, and embed them."""
    make_source(connection, texts(9, chunks=2))
    connection.execute("alter table reports add title text, add other text")
    connection.execute("update reports set title = 'No. ' || id")
    pipeline = make_pipeline(connection, template="$title: $body", **fields)
    install(connection, pipeline)
    embed(connection, session, pipeline)
    return pipeline


def written(connection: Connection) -> int:
    return int(one_value(connection, "select sum(chunks) from pgembed.batches"))


@pytest.mark.on_both_servers
def test_everything_that_reads_the_texts_names_the_way_out_and_goes_on_after_it(
    connection: Connection, session: Session
) -> None:
    pipeline = make_embedded(connection, session, text=False)
    connection.execute("create schema moved")
    before = {name: read(connection, pipeline) for name, read in READS.items()}
    chunks = written(connection)
    shown = "select text_chunk from reports_chunks_chunks order by fulltext_id, chunk_index"
    view = connection.execute(shown).fetchall()
    for rename, told in RENAMES.items():
        connection.execute(rename.format(source=pipeline.source))
        for name, read in READS.items():
            with pytest.raises((PgembedError, psycopg.Error)) as error:
                read(connection, pipeline)
            assert says_the_way_out(error.value, pipeline), name
        assert has_vectors(connection, pipeline), "vectors alone are no matter of the source"
        (check, *_) = check_tables(connection, pipeline)
        assert check.fix is not None
        assert WAY_OUT in check.fix
        assert ", ".join(map(str, follow_source(connection, pipeline))) == told
        pipeline = load_pipeline(connection, "reports")
        assert {name: read(connection, pipeline) for name, read in READS.items()} == before
        assert connection.execute(shown).fetchall() == view
        assert follow_source(connection, pipeline) == []
        assert [each.finding for each in check_tables(connection, pipeline) if each.fix] == []
    insert = "insert into moved.papers (id, heading, text) values (99, 'No. 99', 'It is new.')"
    connection.execute(insert)
    drain(session, pipeline)
    assert_converged(connection, "reports")
    assert written(connection) == chunks + 1


def says_the_way_out(error: BaseException, pipeline: Pipeline) -> bool:
    if isinstance(error, psycopg.Error):
        said = f"{error.diag.message_primary} {error.diag.message_hint}"
        return f"{pipeline.source}" in said and "pgembed alter --follow-source" in said
    return str(pipeline.source) in str(error) and WAY_OUT in str(error) and "\n" not in str(error)


def test_views_that_are_gone_or_read_the_table_of_before_are_made_again(
    connection: Connection, session: Session
) -> None:
    pipeline = make_embedded(connection, session, text=False, view=True)
    connection.execute("drop view reports_chunks_chunks, reports_chunks_view")
    connection.execute("alter table reports rename body to words")
    follow_source(connection, pipeline)
    shown = "select count(text_chunk) > 9 from {}"
    for view in ("reports_chunks_chunks", "reports_chunks_view"):
        assert one_value(connection, shown.format(view))
    connection.execute(
        "alter table reports rename to former; create table reports (like former including all);"
        " insert into reports select * from former; truncate former"
    )
    pipeline = load_pipeline(connection, "reports")
    stale = [each.finding for each in check_tables(connection, pipeline)]
    assert any("reads another table" in finding for finding in stale)
    follow_source(connection, pipeline)
    for view in ("reports_chunks_chunks", "reports_chunks_view"):
        assert one_value(connection, shown.format(view))


@pytest.mark.parametrize("text", [True, False])
def test_next_generation_follows_along_and_stored_texts_too(
    connection: Connection, session: Session, text: bool
) -> None:
    pipeline = make_embedded(connection, session, text=text, chunk_template="<$other>: $chunk")
    begin(connection, pipeline, Changes(text=not text))
    connection.execute(
        "alter table reports rename body to words; alter table reports rename to papers"
    )
    follow_source(connection, pipeline)
    for each in load_pipelines(connection):
        assert (str(each.source), each.spec.template) == ("public.papers", "$title: $words")
        drain(session, each)
        assert_converged(connection, each.name)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("alter table reports drop body cascade", "has no column body, and nothing tells"),
        ("drop table reports cascade", r"there is no public\.reports, and nothing tells"),
        # What is not embedded of any record can be no evidence.
        (
            "alter table reports rename body to words; update reports set words = 'Other'",
            "has no column body, and nothing tells",
        ),
        (
            "alter table reports add copy text; update reports set copy = body;"
            " alter table reports rename body to words",
            "has no column body, and nothing tells",
        ),
        (
            "alter table reports rename title to heading",
            r"has a copy of title by that name; give it its former name",
        ),
    ],
)
def test_what_nothing_tells_is_not_guessed(
    connection: Connection, session: Session, change: str, reason: str
) -> None:
    pipeline = make_embedded(connection, session, text=False, copy_columns=("title",))
    connection.execute(change)
    with pytest.raises(UsageError, match=reason):
        follow_source(connection, pipeline)
    assert load_pipeline(connection, "reports") == pipeline
