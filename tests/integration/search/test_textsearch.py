"""Search by words where pg_textsearch is there: its index ranks as a few lines of Python do."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from psycopg import sql

from pgqueue_embed.cli.index import _say_what_ranks
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.doctor.pipeline import check_words
from pgqueue_embed.errors import MissingRight, UsageError
from pgqueue_embed.lifecycle.copy_indexes import copy_indexes
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search import lexical
from pgqueue_embed.vector_search.lexical_index import (
    build_lexical_index,
    has_lexical_index,
    lexical_indexes,
    wanted_index,
)
from tests.support.lexical import TEXTS, ask, bm25, by_words, fill, in_terms, keys, random_text
from tests.support.pipelines import make_pipeline
from tests.support.textsearch import needs_textsearch, textsearch_server

pytestmark = needs_textsearch()

# A name to be quoted, which is on no search path.
SCHEMA = "Bm 25"
NAMES = {"gin": "reports_chunks_text_chunk_lexical", "bm25": "reports_chunks_text_chunk_bm25"}


@pytest.fixture(scope="module")
def migrated() -> Iterator[str]:
    """The connection string of a migrated database, one for the file's tests."""
    with textsearch_server() as conninfo:
        yield conninfo


@pytest.fixture
def connection(migrated: str) -> Iterator[Connection]:
    """A session in the database, which has pg_textsearch and nothing of other tests."""
    with connect(migrated, application_name="test") as session:
        session.execute("reset search_path")
        session.execute(sql.SQL("create schema {}").format(sql.Identifier(SCHEMA)))
        make_extension(session)
        yield session
        session.execute("reset role")
        session.execute("reset search_path")
        session.execute("drop extension if exists pg_textsearch cascade")
        session.execute(sql.SQL("drop schema {} cascade").format(sql.Identifier(SCHEMA)))
        session.execute("truncate pgembed.pipelines cascade")
        session.execute("drop table if exists public.reports_next, public.reports_chunks")
        session.execute("drop table public.reports cascade")


def make_extension(connection: Connection) -> None:
    create = sql.SQL("create extension pg_textsearch schema {}")
    connection.execute(create.format(sql.Identifier(SCHEMA)))


@pytest.fixture
def reports(connection: Connection) -> Pipeline:
    """A pipeline of texts of which vectors put the last ones last."""
    pipeline = fill(connection, TEXTS)
    build_lexical_index(connection, pipeline)
    return pipeline


def scan_of(connection: Connection) -> object:
    return connection.value("select pgembed.lexical_scan(pipelines) from pgembed.pipelines")


@pytest.mark.parametrize("partition_by", [None, "hash:3"])
def test_it_ranks_as_bm25_of_python(connection: Connection, partition_by: str | None) -> None:
    """Of a part, by how common a term is there: which chunks are found is the same."""
    source = random.Random(0)
    texts = [random_text(source, 20) for _ in range(100)]
    pipeline = fill(connection, texts, partition_by=partition_by)
    warnings: list[str] = []
    built = build_lexical_index(connection, pipeline, on_warning=warnings.append)
    assert (built, warnings) == (NAMES["bm25"], [])
    for _ in range(10):
        query = random_text(source, 5)
        scores = bm25(texts, query, in_terms)
        found = [scores[int(row[0]) - 1] for row in by_words(connection, pipeline, query)]
        assert len(found) == sum(score > 0 for score in scores), query
        assert min(found, default=1.0) > 0
        if partition_by is None:
            # A length of more than 40 words is rounded.
            assert found == pytest.approx(sorted(found, reverse=True), rel=0.05), query


@pytest.mark.parametrize(
    ("words", "key"),
    [("ab-1234", "151"), ("型号AB1234", "151"), ("过热", "151"), ("LOT00917/3", "152")],
)
def test_what_vectors_miss_is_found_as_typed(
    connection: Connection, reports: Pipeline, words: str, key: str
) -> None:
    assert scan_of(connection) == lexical.PG_TEXTSEARCH
    assert ask(connection, reports, words, lexical_weight=1.0)[0].key_text == key


def test_rare_condition_lets_in_all_there_is(connection: Connection, reports: Pipeline) -> None:
    for plan in ("", "set enable_sort = off; set enable_hashjoin = off"):
        connection.execute(plan or "select 1")
        found = ask(connection, reports, "the catheter", where="id = 77", lexical_weight=1.0)
        assert keys(found) == ["77"]
        assert found[0].hybrid_score == 1.0
    connection.execute("reset enable_sort; reset enable_hashjoin")
    found = ask(connection, reports, "stent", where="id in (77, 152)", lexical_weight=1.0)
    assert [(hit.key_text, hit.hybrid_score) for hit in found] == [("152", 1.0), ("77", 0.0)]
    whole = ask(connection, reports, "stent of catheter 7", where="kind = 0", limit=1_000)
    assert sorted(map(int, keys(whole))) == list(range(2, 153, 2))


def test_index_follows_whoever_writes(connection: Connection, reports: Pipeline) -> None:
    connection.execute(
        "update reports_chunks set text_chunk = 'model ZX-9' where fulltext_id = 151"
    )
    assert by_words(connection, reports, "AB-1234") == []
    assert [row[0] for row in by_words(connection, reports, "zx")] == ["151"]
    connection.execute("delete from reports_chunks where fulltext_id = 151")
    assert by_words(connection, reports, "zx") == []


def test_whoever_may_write_chunks_needs_no_other_right(
    connection: Connection, reports: Pipeline
) -> None:
    connection.execute("create role writer; grant all on reports_chunks to writer; set role writer")
    try:
        connection.execute("update reports_chunks set text_chunk = 'ZX' where fulltext_id = 1")
    finally:
        connection.execute("reset role; drop owned by writer; drop role writer")
    assert [row[0] for row in by_words(connection, reports, "zx")] == ["1"]


@pytest.mark.parametrize("words", ["", "…", "unheardof", "it's \\ ' \x00 & | ! :*", "的" * 70_000])
def test_words_that_nothing_has_leave_what_is_near(
    connection: Connection, reports: Pipeline, words: str
) -> None:
    assert keys(ask(connection, reports, words, where="id < 4")) == ["1", "2", "3"]


def test_any_text_is_indexed(connection: Connection, reports: Pipeline) -> None:
    fill_in = "update reports_chunks set text_chunk = {} where fulltext_id = 1"
    for each in (
        "md5(n::text) || ' '",
        "chr(19968 + n * 7919 % 20000)",
        "repeat('q7', 40)",
        "'a1-'",
    ):
        many = f"(select string_agg({each}, '') from generate_series(1, 30000) as n)"
        connection.execute(fill_in.format(many))
    assert [row[0] for row in by_words(connection, reports, "a1-" * 16_666)] == ["1"]


def test_switch_of_generations_builds_it_too(connection: Connection, reports: Pipeline) -> None:
    successor = make_pipeline(
        connection, name="next", target=Table(schema="public", name="reports_next")
    )
    copy_indexes(connection, reports, successor)
    assert list(lexical_indexes(connection, successor)) == [lexical.PG_TEXTSEARCH]


def test_without_the_extension_it_says_how_to_go_on(
    connection: Connection, reports: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    connection.execute("drop extension pg_textsearch cascade")
    with pytest.raises(UsageError, match="are not indexed; do it: pgembed index reports --lexical"):
        ask(connection, reports, "stent")
    assert build_lexical_index(connection, reports) == NAMES["gin"]
    assert keys(ask(connection, reports, "LOT00917", lexical_weight=1.0))[0] == "152"
    make_extension(connection)
    connection.execute(
        "update pg_extension set extversion = '1.4.0' where extname = 'pg_textsearch'"
    )
    (_, old) = check_words(connection, reports)
    assert old.finding.endswith("pg_textsearch 1.4.0 is too old; it is used from 1.5 on")
    connection.execute(
        "update pg_extension set extversion = '1.5.1' where extname = 'pg_textsearch'"
    )
    (_, unused) = check_words(connection, reports)
    assert unused.fix == "pgembed index reports --lexical"
    assert build_lexical_index(connection, reports) == NAMES["bm25"]
    assert list(lexical_indexes(connection, reports)) == [lexical.PG_TEXTSEARCH, lexical.GIN]
    _say_what_ranks(connection, reports)
    said = capsys.readouterr().out
    assert (
        said == f"pg_textsearch 1.5.1 ranks the words; no search needs public.{NAMES['gin']} now\n"
    )


@pytest.mark.parametrize(
    ("version", "kind"), [("1.10.0", "pg_textsearch"), ("2.0-dev", "pg_textsearch"), ("1.4", "gin")]
)
def test_version_is_read_by_its_first_numbers(
    connection: Connection, reports: Pipeline, version: str, kind: str
) -> None:
    change = "update pg_extension set extversion = %s where extname = 'pg_textsearch'"
    connection.execute(change, (version,))
    assert wanted_index(connection, reports) == kind


def test_whom_policies_hide_chunks_from_learns_nothing_of_them(
    connection: Connection, reports: Pipeline
) -> None:
    """What a common term is would be known by the order of what one may see."""
    connection.execute("create role reader; grant usage on schema pgembed to reader")
    connection.execute("grant select on pgembed.pipelines, reports_chunks to reader")
    connection.execute("alter table reports_chunks enable row level security")
    connection.execute("create policy own on reports_chunks using (fulltext_id > 150)")
    try:
        connection.execute("set role reader")
        assert not has_lexical_index(connection, reports)
        connection.execute("reset role")
        assert scan_of(connection) == lexical.PG_TEXTSEARCH
        assert build_lexical_index(connection, reports) == NAMES["gin"]
        connection.execute("set role reader; set row_security = on")
        assert scan_of(connection) == lexical.GIN
        assert [row[0] for row in by_words(connection, reports, "catheter stent")] == ["152"]
    finally:
        connection.execute("reset role")
        connection.execute("drop owned by reader; drop role reader")


def test_parts_get_the_other_index_one_after_the_other(connection: Connection) -> None:
    """Else that of the whole would be built under a lock that keeps writers out."""
    pipeline = fill(connection, TEXTS, partition_by="hash:2")
    build_lexical_index(connection, pipeline)
    connection.execute("alter table reports_chunks enable row level security")
    build_lexical_index(connection, pipeline)
    of_parts = connection.execute(
        "select indexrelid::regclass::text from pg_index join pg_class on pg_class.oid = indrelid"
        " where relname ~ '^reports_chunks_[01]$' and not indisprimary order by 1"
    ).fetchall()
    assert [name for (name,) in of_parts] == [
        f"reports_chunks_{part}_text_chunk_{kind}" for part in "01" for kind in ("bm25", "lexical")
    ]


def test_who_may_not_call_the_extension_searches_by_the_other_index(
    connection: Connection, reports: Pipeline
) -> None:
    connection.execute("create role reader; grant usage on schema pgembed to reader")
    connection.execute("grant select on all tables in schema pgembed to reader")
    connection.execute("grant select on reports_chunks to reader")
    try:
        connection.execute("set role reader")
        with pytest.raises(MissingRight, match=f'permission denied for schema "?{SCHEMA}'):
            ask(connection, reports, "LOT00917")
        connection.execute("reset role")
        connection.execute("create index on reports_chunks using gin (pgembed.terms(text_chunk))")
        assert scan_of(connection) == lexical.PG_TEXTSEARCH
        connection.execute("set role reader")
        assert keys(ask(connection, reports, "LOT00917", lexical_weight=1.0))[0] == "152"
    finally:
        connection.execute("reset role; drop owned by reader; drop role reader")


HOSTILE = """
create schema hostile;
create function hostile.to_bm25query(text, text) returns text language sql as 'select 1 / 0';
create function hostile.terms(text) returns tsvector language sql as $$ select ''::tsvector $$;
create function hostile.words(tsvector) returns text language sql as 'select 1 / 0';
create function hostile.md5(text) returns text language sql as 'select 1 / 0';
create function hostile.octet_length(text) returns int language sql as 'select 1 / 0';
create function hostile.translate(text, text, text) returns text language sql as 'select 1 / 0';
create operator hostile.<= (function = int4gt, leftarg = int, rightarg = int);
"""


def test_better_matches_on_the_search_path_are_not_used(
    connection: Connection, reports: Pipeline
) -> None:
    connection.execute(HOSTILE)
    try:
        connection.execute("set search_path = hostile, pg_catalog, public")
        words = f"zx {'long' * 20}"
        change = "update reports_chunks set text_chunk = %s where fulltext_id = 1"
        connection.execute(change, (words,))
        assert [row[0] for row in by_words(connection, reports, words)] == ["1"]
    finally:
        connection.execute("drop schema hostile cascade")
