"""Adopting a table of vectors that is there: what is right stays, everything else is queued."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import numpy as np
import pytest

from pgqueue_embed.adopt import (
    adopt_records,
    attach_table,
    check_agreement,
    compare,
    ensure_key_index,
    make_judge,
    resumable,
    scan,
    slices,
    survey,
)
from pgqueue_embed.adopt.judge import Judge
from pgqueue_embed.adopt.slices import next_slice
from pgqueue_embed.cli.search import show_hits
from pgqueue_embed.db import locks
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import PipelineFault, UsageError
from pgqueue_embed.lifecycle.alter import Changes, alter, catch_up
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.target_columns import TargetColumns
from pgqueue_embed.queue import deleted
from pgqueue_embed.queue.adoptions import Counts
from pgqueue_embed.queue.enqueue import Selection, Slice, enqueue
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support.adopting import VECTORS, FakeModel, Row, adopt, candidate_of, make_vectors
from tests.support.commands import pgembed
from tests.support.corpus import make_source, set_text, texts
from tests.support.fakes import DIMENSIONS, FakeDevice, fake_chunker, unit_vector
from tests.support.oracle import assert_converged
from tests.support.pipelines import REPORTS, make_pipeline, prepare_with_fake_model
from tests.support.rows import one_row, one_value
from tests.support.working import drain, open_session, work_once


def candidate_judge(pipeline: Pipeline) -> Judge:
    return make_judge(FakeModel(), pipeline)


def own_rows(documents: list[str]) -> list[Row]:
    """Return the chunks of `documents` as pgembed cuts them."""
    chunked = fake_chunker().chunk(documents)
    return [
        (number, chunk.text, None)
        for number, document in enumerate(chunked, start=1)
        for chunk in document.chunks
    ]


def sentence_rows(documents: list[str]) -> list[Row]:
    """Return the lines and sentences of `documents` as chunks of their own: other cuts."""
    return [
        (number, sentence, None)
        for number, document in enumerate(documents, start=1)
        for sentence in re.split(r"(?<=[.!?。！？;]) *|\n+", document)
        if sentence
    ]


def embedded_texts(conninfo: str, pipeline: Pipeline) -> list[str]:
    device = FakeDevice()
    with open_session(conninfo) as session:
        drain(session, pipeline, device)
    return device.embedded_texts


@pytest.mark.on_both_servers
def test_former_table_of_a_dropped_pipeline_is_adopted_as_it_is(
    conninfo: str, connection: Connection
) -> None:
    source = make_source(connection, [*texts(30, chunks=3), None, " "])
    pipeline = make_pipeline(connection, source, target=VECTORS)
    enqueue(connection, pipeline, Selection())
    embedded_texts(conninfo, pipeline)
    drop_pipeline(connection, pipeline, delete_vectors=False)
    before = one_value(connection, "select array_agg(v.xmin::text) from vectors v")
    pipeline, counts = adopt(connection, source)
    (rows, after) = one_row(connection, "select count(*), array_agg(v.xmin::text) from vectors v")
    assert counts == Counts(adopted=30, empty=2, chunks=rows)
    assert after == before, "a row that has everything was written"
    assert enqueue(connection, pipeline, Selection()) == 0
    assert_converged(connection, "reports")


@pytest.mark.on_both_servers
@pytest.mark.parametrize("rows_of", [own_rows, sentence_rows], ids=["own cuts", "other cuts"])
def test_verbatim_chunks_that_cover_their_texts_are_adopted_whatever_the_cuts(
    conninfo: str, connection: Connection, rows_of: object
) -> None:
    documents = texts(40, chunks=4)
    source = make_source(connection, documents)
    make_vectors(connection, rows_of(documents))  # type: ignore[operator]
    _, counts = adopt(connection, source)
    assert (counts.adopted, counts.queued) == (40, 0)
    assert_converged(connection, "reports")


def test_everything_that_is_not_right_is_queued_and_put_right(
    conninfo: str, connection: Connection
) -> None:
    documents = texts(12)
    source = make_source(connection, [*documents, None])
    rows = [row for row in own_rows(documents) if row[0] != 1]
    zero = np.zeros(DIMENSIONS, np.float32)
    rows = [(key, text, zero if key == 2 else own) for key, text, own in rows]
    rows = [(key, text + "x" if key == 3 else text, own) for key, text, own in rows]
    rows += [(13, "no text any more", None), (99, "a record that is gone", None)]
    make_vectors(connection, rows)
    connection.execute(
        "delete from vectors where ctid = (select max(ctid) from vectors v where fulltext_id = 4)"
    )
    pipeline, counts = adopt(connection, source, doubtful=["5"])
    assert counts == Counts(
        adopted=7, chunks=counts.chunks, missing=1, wrong_vectors=2, text_differs=3, gone=1
    )
    progress = "select total, done, pending from pgembed.progress"
    assert connection.execute(progress).fetchone() == (14, 7, 7)
    again = embedded_texts(conninfo, pipeline)
    assert {text for key, text, _ in own_rows(documents) if key in (1, 2, 3, 4, 5)} == set(again)
    assert_converged(connection, "reports")


def test_chunks_of_too_many_records_that_are_gone_stay_until_a_person_allows_it(
    conninfo: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deleted, "UNASKED_RECORDS", 3)
    source = make_source(connection)
    documents = texts(5)
    make_vectors(connection, own_rows(documents))
    pipeline, counts = adopt(connection, source)
    assert counts.gone == 5
    chunks = "select count(distinct fulltext_id) from vectors"
    with open_session(conninfo) as session:
        drain(session, pipeline)
        assert connection.execute(chunks).fetchone() == (5,)
        with pytest.raises(PipelineFault, match="--allow-deletes"):
            enqueue(connection, pipeline, Selection())
        enqueue(connection, pipeline, Selection(), allow_deletes=True)
        drain(session, pipeline)
    assert connection.execute(chunks).fetchone() == (0,)


def test_direction_counts_and_length_is_put_right(conninfo: str, connection: Connection) -> None:
    documents = texts(5)
    source = make_source(connection, documents)
    rows = [(key, text, 5 * unit_vector(text)) for key, text, _ in own_rows(documents)]
    make_vectors(connection, rows)
    _, counts = adopt(connection, source)
    assert (counts.adopted, counts.queued) == (5, 0)
    assert_converged(connection, "reports")


def test_survey_finds_what_an_adoption_finds_and_changes_nothing(connection: Connection) -> None:
    documents = texts(10)
    source = make_source(connection, documents)
    make_vectors(connection, [*own_rows(documents)[2:], (99, "gone", None)])
    found = survey(connection, candidate_of(connection, source))
    columns = (
        "select count(*) from pg_attribute where attrelid = 'vectors'::regclass and attnum > 0"
    )
    assert connection.execute(columns).fetchone() == (3,)
    assert connection.execute("select count(*) from pgembed.pipelines").fetchone() == (0,)
    assert found.is_whole
    assert found.counts == adopt(connection, source)[1]


# Interruptions and company


class Interrupted(Exception):
    """Ends an adoption in its midst."""


def test_interrupted_adoption_goes_on_where_it_stopped(
    conninfo: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "SLICE_RECORDS", 5)
    documents = texts(20)
    source = make_source(connection, documents)
    make_vectors(connection, [*own_rows(documents)[3:], (99, "gone", None)])
    seen: list[int] = []

    def interrupt(done: Slice) -> None:
        seen.append(done.scanned)
        if len(seen) == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        adopt(connection, source, on_slice=interrupt)
    pipeline = load_pipeline(connection, "reports")
    for refused in (
        lambda: enqueue(connection, pipeline, Selection()),
        lambda: alter(connection, pipeline, Changes(chunk_tokens=8)),
    ):
        with pytest.raises(UsageError, match="go on with: pgembed adopt reports"):
            refused()
    resumed = resumable(connection, "reports", None)
    assert resumed is not None
    judge = candidate_judge(resumed)
    counts = adopt_records(connection, resumed, judge, on_slice=lambda d: seen.append(d.scanned))
    assert seen == [5, 5, 5, 5, 0, 0]
    assert counts.adopted + counts.missing + counts.text_differs == 20
    assert counts.gone == 1
    with pytest.raises(UsageError, match="is adopted already"):
        resumable(connection, "reports", None)
    embedded_texts(conninfo, resumed)
    assert_converged(connection, "reports")


def test_two_that_adopt_at_once_count_every_record_once(
    conninfo: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "SLICE_RECORDS", 7)
    documents = texts(60)
    source = make_source(connection, documents)
    make_vectors(connection, own_rows(documents))
    candidate = candidate_of(connection, source)
    pipeline = attach_table(connection, candidate, ())

    def go_through() -> Counts:
        with connect(conninfo) as own:
            return adopt_records(own, pipeline, candidate_judge(pipeline))

    with ThreadPoolExecutor(3) as pool:
        found = [each.result() for each in [pool.submit(go_through) for _ in range(3)]]
    assert {each.adopted for each in found} == {60}
    assert_converged(connection, "reports")


def test_worker_and_writer_beside_an_adoption_leave_nothing_stale(
    conninfo: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "SLICE_RECORDS", 6)
    documents = texts(36)
    source = make_source(connection, documents)
    rows = [row for row in own_rows(documents) if int(str(row[0])) % 3]
    make_vectors(connection, rows)
    numbers = count(1)

    def meddle(_done: Slice) -> None:
        """Change a text that was adopted, one that was not, and let a worker have its way."""
        number = next(numbers)
        set_text(connection, source, number, f"Changed {number}.")
        set_text(connection, source, 37 - number, f"Changed {37 - number}.")
        with open_session(conninfo) as session:
            work_once(session, load_pipeline(connection, "reports"))

    pipeline, _ = adopt(connection, source, on_slice=meddle)
    enqueue(connection, pipeline, Selection())
    embedded_texts(conninfo, pipeline)
    assert_converged(connection, "reports")


def test_text_or_row_that_changes_between_reading_and_writing_is_queued(
    conninfo: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = texts(6)
    source = make_source(connection, documents)
    make_vectors(connection, own_rows(documents))
    read = next_slice

    def read_and_change(*arguments: Any, **named: Any) -> Any:
        judged = read(*arguments, **named)
        connection.execute("update reports set body = body || ' And more.' where id = 1")
        connection.execute("delete from reports where id = 2")
        connection.execute("update vectors set text_chunk = 'meddled' where fulltext_id = 3")
        return judged

    monkeypatch.setattr(scan, "next_slice", read_and_change)
    pipeline, counts = adopt(connection, source)
    assert (counts.adopted, counts.text_differs) == (3, 3)
    embedded_texts(conninfo, pipeline)
    assert_converged(connection, "reports")


# The comparison


def test_vectors_of_the_model_agree_and_those_of_another_are_refused(
    connection: Connection,
) -> None:
    documents = texts(20)
    source = make_source(connection, documents)
    make_vectors(connection, own_rows(documents))
    candidate = candidate_of(connection, source)
    agreement = compare(connection, candidate)
    check_agreement(candidate, agreement)
    assert agreement.share == 1.0
    connection.execute("update vectors set embedding = '[1,0,0,0,0,0,0,0]'")
    with pytest.raises(UsageError, match="another model, pooling or prompt made them"):
        check_agreement(candidate, compare(connection, candidate))
    connection.execute("update vectors set text_chunk = 'something else'")
    with pytest.raises(UsageError, match=r"with another text.*nothing would be adopted"):
        check_agreement(candidate, compare(connection, candidate))
    connection.execute("truncate vectors")
    with pytest.raises(UsageError, match="has no chunks to adopt"):
        compare(connection, candidate)


def test_one_wrong_vector_in_a_hundred_is_found_out_and_embedded_again(
    conninfo: str, connection: Connection
) -> None:
    documents = texts(150)
    source = make_source(connection, documents)
    make_vectors(connection, own_rows(documents))
    connection.execute(
        "update vectors set embedding = '[1,0,0,0,0,0,0,0]' where fulltext_id = 7 and ctid ="
        " (select min(ctid) from vectors v where v.fulltext_id = 7)"
    )
    candidate = candidate_of(connection, source)
    agreement = compare(connection, candidate, sample_chunks=1_000)
    check_agreement(candidate, agreement)
    assert agreement.doubtful == ("7",)
    pipeline, counts = adopt(connection, source, doubtful=agreement.doubtful)
    assert (counts.adopted, counts.wrong_vectors) == (149, 1)
    again = embedded_texts(conninfo, pipeline)
    assert again == [text for key, text, _ in own_rows(documents) if key == 7]
    assert_converged(connection, "reports")


@pytest.mark.parametrize(
    ("options", "line"),
    [({"sample_chunks": 0}, "--sample 0"), ({"min_cosine": 1.5}, "--min-cosine 1.5")],
)
def test_comparison_out_of_range_is_refused(
    connection: Connection, options: dict[str, Any], line: str
) -> None:
    source = make_source(connection, texts(2))
    make_vectors(connection, own_rows(texts(2)))
    with pytest.raises(UsageError, match=line):
        compare(connection, candidate_of(connection, source), **options)


# Tables that cannot be adopted


REFUSED = {
    "no such table": (["drop table vectors"], {}, "no table public.vectors to adopt"),
    "view": (
        ["alter table vectors rename to v", "create view vectors as select * from v"],
        {},
        "only a plain table",
    ),
    "no text column": (
        ["alter table vectors rename text_chunk to content"],
        {},
        "has no column 'text_chunk'.*--target-column text_chunk=NAME",
    ),
    "text of limited length": (
        ["alter table vectors alter column text_chunk type varchar(500)"],
        {},
        "of limited length.*type text",
    ),
    "key of another type": (
        ["alter table vectors alter column fulltext_id type text using fulltext_id::text"],
        {},
        "is of type text.*alter table.*type bigint using",
    ),
    "key too narrow": (
        ["alter table vectors alter column fulltext_id type integer"],
        {},
        "type integer.*of type bigint",
    ),
    "key that is null": (
        [
            "alter table vectors alter column fulltext_id drop not null",
            "insert into vectors values (null, 'text', null)",
        ],
        {},
        "have no fulltext_id",
    ),
    "array for a vector": (
        ["alter table vectors alter column embedding type real[] using embedding::real[]"],
        {},
        r"is of type real\[\]; convert it: alter table.*vector",
    ),
    "no vector": (
        ["alter table vectors alter column embedding type text using embedding::text"],
        {},
        "--target-column embedding=NAME",
    ),
    "column of the user's with one of our names": (
        ["alter table vectors add column tokens text"],
        {},
        "--target-column tokens=pgembed_tokens",
    ),
    "generated column": (
        ["alter table vectors add column tokens integer generated always as (1) stored"],
        {},
        "is generated",
    ),
    "column that must not be null": (
        [
            "alter table vectors add column author text not null default ''",
            "alter table vectors alter column author drop default",
        ],
        {},
        "vectors.author is not null.*drop not null",
    ),
    "reference from another table": (
        [
            "alter table vectors add column id bigint generated always as identity primary key",
            "create table notes (chunk bigint references vectors)",
        ],
        {},
        "foreign key notes_chunk_fkey of .*notes refers to",
    ),
    "chunk template": (
        [],
        {"chunk_template": "$body: $chunk"},
        "--chunk-template: a table that is there cannot be adopted with it",
    ),
    "column of the source": (
        [],
        {"into_column": "vector", "chunking": "none"},
        "--into-column: a table that is there cannot be adopted with it",
    ),
}


@pytest.mark.parametrize(("statements", "fields", "line"), REFUSED.values(), ids=REFUSED.keys())
def test_table_that_cannot_be_adopted_is_refused_in_one_line(
    connection: Connection, statements: list[str], fields: dict[str, Any], line: str
) -> None:
    source = make_source(connection, texts(2))
    make_vectors(connection, own_rows(texts(2)))
    for statement in statements:
        connection.execute(statement)
    with pytest.raises(UsageError, match=line) as refusal:
        candidate_of(connection, source, **fields)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "statement",
    [
        "alter table vectors add constraint short check (length(text_chunk) > 7)",
        "create function refuse() returns trigger language plpgsql as"
        " $$ begin raise exception 'not today'; end $$;"
        "create trigger refuse before insert on vectors for each row execute function refuse()",
    ],
)
def test_table_that_would_refuse_a_workers_rows_is_left_as_it_was(
    connection: Connection, statement: str
) -> None:
    source = make_source(connection, texts(2))
    make_vectors(connection, [row for row in own_rows(texts(2)) if len(row[1]) > 7])
    connection.execute(statement)
    with pytest.raises(UsageError, match="does not take a row as pgembed writes it"):
        adopt(connection, source)
    assert connection.execute("select count(*) from pgembed.pipelines").fetchone() == (0,)
    connection.execute("alter table vectors add column tokens integer")


def test_table_of_a_pipeline_is_not_adopted_by_another(connection: Connection) -> None:
    source = make_source(connection, texts(2))
    make_pipeline(connection, source, target=VECTORS)
    with pytest.raises(UsageError, match="is the target of pipeline 'reports' already"):
        candidate_of(connection, source, name="others")


def test_table_in_use_is_waited_for_and_then_left_as_it_was(
    conninfo: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "TRIES", 1)
    source = make_source(connection, texts(2))
    make_vectors(connection, own_rows(texts(2)))
    with connect(conninfo) as other, other.transaction():
        other.execute("select from public.vectors")
        with pytest.raises(UsageError, match="is used without a pause"):
            adopt(connection, source)
    assert adopt(connection, source)[1].adopted == 2


# Tables of other shapes


def test_extra_columns_and_other_names_stay_and_are_filled_by_their_defaults(
    conninfo: str, connection: Connection
) -> None:
    documents = texts(6)
    source = make_source(connection, documents)
    make_vectors(
        connection,
        own_rows(documents)[2:],
        columns="langchain_id uuid primary key default gen_random_uuid(), content text,"
        " report_id bigint, langchain_metadata json default '{}' not null",
        names=("report_id", "content", "embedding"),
    )
    columns = TargetColumns(
        id="langchain_id", fulltext_id=("report_id",), text_chunk="content", tokens="n"
    )
    pipeline, counts = adopt(connection, source, columns=columns)
    assert counts.queued > 0
    embedded_texts(conninfo, pipeline)
    assert_converged(connection, "reports")
    missing = "select count(*) from vectors where langchain_metadata is null or created_at is null"
    assert connection.execute(missing).fetchone() == (counts.chunks,)


def test_store_as_pgai_makes_it_keeps_its_cuts_and_constraints(
    conninfo: str, connection: Connection
) -> None:
    documents = texts(8, chunks=2)
    source = make_source(connection, documents)
    make_vectors(
        connection,
        [row for row in sentence_rows(documents) if row[0] != 8],
        columns="embedding_uuid uuid primary key default gen_random_uuid(), chunk text not null,"
        " id bigint not null references reports on delete cascade, chunk_seq integer",
        names=("id", "chunk", "embedding"),
    )
    connection.execute(
        "update vectors set chunk_seq = numbered.number from (select ctid as place,"
        " row_number() over (partition by id order by ctid) - 1 as number from vectors) as numbered"
        " where ctid = place"
    )
    connection.execute("alter table vectors add unique (id, chunk_seq)")
    columns = TargetColumns(
        id="embedding_uuid", fulltext_id=("id",), text_chunk="chunk", chunk_index="chunk_seq"
    )
    connection.execute("delete from reports where id = 1")
    pipeline, counts = adopt(connection, source, columns=columns)
    assert (counts.adopted, counts.missing, counts.queued) == (6, 1, 1)
    embedded_texts(conninfo, pipeline)
    assert_converged(connection, "reports")


@pytest.mark.on_both_servers
@pytest.mark.parametrize("vector", ["vector", f"halfvec({DIMENSIONS})", f"vector({DIMENSIONS})"])
def test_vectors_of_every_type_are_adopted(
    conninfo: str, connection: Connection, vector: str
) -> None:
    documents = texts(6)
    source = make_source(connection, documents)
    rows = own_rows(documents)
    if vector == "vector":
        rows[0] = (*rows[0][:2], np.ones(3, np.float32))
    make_vectors(connection, rows, vector=vector)
    candidate = candidate_of(connection, source)
    check_agreement(candidate, compare(connection, candidate))
    pipeline, counts = adopt(connection, source)
    assert counts.wrong_vectors == (1 if vector == "vector" else 0)
    assert counts.adopted + counts.wrong_vectors == 6
    embedded_texts(conninfo, pipeline)
    assert_converged(connection, "reports")


def test_composite_key_and_condition_are_adopted(conninfo: str, connection: Connection) -> None:
    connection.execute(
        "create table reports (tenant text, day date, body text, primary key (tenant, day))"
    )
    connection.execute(
        "insert into reports select 'a \"b\"', date '2024-01-01' + n::int, body"
        " from unnest(%s::text[]) with ordinality as t (body, n)",
        (texts(8),),
    )
    rows = own_rows(texts(8))
    connection.execute(
        f"create table vectors (tenant text, day date, text_chunk text,"
        f" embedding vector({DIMENSIONS}))"
    )
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into vectors values ('a \"b\"', '2024-01-01'::date + %s, %s, %s::text::vector)",
            [(key, text, str(unit_vector(text).tolist())) for key, text, _ in rows],
        )
    pipeline, counts = adopt(
        connection,
        REPORTS,
        id_fields=("tenant", "day"),
        columns=TargetColumns(fulltext_id=("tenant", "day")),
        where="day < '2024-01-06'",
    )
    assert (counts.adopted, counts.gone) == (4, 4)
    embedded_texts(conninfo, pipeline)
    assert_converged(connection, "reports")


def test_index_on_the_key_is_made_where_there_is_none(connection: Connection) -> None:
    documents = texts(3)
    source = make_source(connection, documents)
    make_vectors(connection, own_rows(documents))
    pipeline, _ = adopt(connection, source)
    said: list[str] = []
    ensure_key_index(connection, pipeline, on_build=said.append)
    assert said == []
    indexes = "select array_agg(indexname::text) from pg_indexes where tablename = 'vectors'"
    assert connection.execute(indexes).fetchone() == (["vectors_pgembed_key"],)


def test_dropping_forgets_the_adoption(connection: Connection) -> None:
    source = make_source(connection, texts(2))
    make_vectors(connection, own_rows(texts(2)))
    pipeline, _ = adopt(connection, source)
    drop_pipeline(connection, pipeline, delete_vectors=False)
    assert connection.execute("select count(*) from pgembed.adoptions").fetchone() == (0,)
    assert adopt(connection, source)[1].adopted == 2


def test_adopted_table_takes_a_new_generation(
    conninfo: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgqueue_embed.lifecycle.alter.prepare", prepare_with_fake_model)
    monkeypatch.setattr("pgqueue_embed.lifecycle.alter.check_local_model", lambda _pipeline: None)
    documents = texts(5, chunks=3)
    source = make_source(connection, documents)
    make_vectors(connection, own_rows(documents))
    pipeline, _ = adopt(connection, source)
    successor = alter(connection, pipeline, Changes(chunk_tokens=8, overlap_tokens=0))
    assert successor is not None
    catch_up(connection, pipeline, successor)
    embedded_texts(conninfo, successor)
    switch(connection, pipeline)
    assert_converged(connection, "reports")


def test_search_shows_what_is_not_adopted_yet_without_its_place(
    conninfo: str, connection: Connection
) -> None:
    source = make_source(connection, texts(2))
    make_vectors(connection, own_rows(texts(2)))
    pipeline = attach_table(connection, candidate_of(connection, source), ())
    hits = search(
        connection, pipeline, unit_vector(texts(2)[0]), SearchRequest(limit=1, threshold=-1.0)
    )
    assert [(hit.start_char, hit.chunk_index) for hit in hits] == [(None, None)]
    show_hits(hits)
    refused = pgembed(conninfo, "adopt", "reports", "--dry-run")
    sync = pgembed(conninfo, "adopt", "reports", "--sync")
    assert sync.error == "--sync: adopt the table first, then: pgembed sync reports --on"
    assert refused.error == (
        "the adoption of public.vectors has begun; go on with: pgembed adopt reports"
    )


def test_records_that_a_constraint_keeps_from_being_filled_in_are_embedded_anew(
    conninfo: str, connection: Connection
) -> None:
    documents = texts(9, chunks=3)
    source = make_source(connection, documents)
    make_vectors(connection, own_rows(documents))
    connection.execute(
        "alter table vectors add column tokens integer,"
        " add constraint unfilled check (tokens is null or fulltext_id <> 4)"
    )
    pipeline, counts = adopt(connection, source)
    assert (counts.adopted, counts.text_differs) == (8, 1)
    connection.execute("alter table vectors drop constraint unfilled")
    embedded_texts(conninfo, pipeline)
    assert_converged(connection, "reports")
