"""Tables that can be adopted, others that cannot, and what is kept of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pgqueue_embed.adopt import (
    attach_table,
    check_agreement,
    compare_sample,
    ensure_key_index,
)
from pgqueue_embed.cli.search import show_hits
from pgqueue_embed.db import locks
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import UsageError
from pgqueue_embed.lifecycle.alter import Changes, alter, catch_up
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.pipeline.target_columns import TargetColumns
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support.adopted_rows import embedded_texts, own_rows, sentence_rows
from tests.support.adopting import VECTORS, adopt, candidate_of, make_vectors
from tests.support.commands import pgembed
from tests.support.corpus import make_source, texts
from tests.support.fakes import DIMENSIONS, unit_vector
from tests.support.oracle import assert_converged
from tests.support.pipelines import REPORTS, make_pipeline, prepare_with_fake_model


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
        compare_sample(connection, candidate_of(connection, source), **options)


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
    check_agreement(candidate, compare_sample(connection, candidate))
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
