"""Search with a condition: never fewer than there are, whatever the index gives up on."""

from __future__ import annotations

import numpy as np
import pytest
from psycopg import sql

from pgqueue_embed.db.session import Connection, RawCursor, connect
from pgqueue_embed.db.vectors import vector_text
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search.index import plan
from pgqueue_embed.vector_search.index_build import build_index
from pgqueue_embed.vector_search.index_plan import IndexOptions
from pgqueue_embed.vector_search.relation import relation_of
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support.searching import CONDITIONS, QUERY, ROWS, SEARCHED, ask, brute_force, scores

PREPARED = SEARCHED


@pytest.mark.parametrize("limit", [10, 100])
def test_never_fewer_than_there_are_and_the_nearest_of_them(
    connection: Connection, conninfo: str, indexed: Pipeline, limit: int
) -> None:
    for where in ("true", *CONDITIONS):
        expected = brute_force(connection, where)
        hits = ask(conninfo, indexed, limit=limit, where=where)
        wanted = [similarity for _, _, similarity in expected[:limit]]
        assert len(hits) == len(wanted), where
        right = np.isclose(scores(hits), wanted, atol=1e-5).sum()
        assert right >= 0.9 * len(wanted), where
        allowed = {(key, index) for key, index, _ in expected}
        assert {(hit.key, hit.chunk_index) for hit in hits} <= allowed


def test_scans_go_on_in_any_order_and_a_statement_puts_hits_in_theirs(
    connection: Connection, conninfo: str, indexed: Pipeline
) -> None:
    """In strict order, pgvector drops what it finds late and is nearer than what it has named."""
    widen = "select pgembed.widen_scan(pipelines, 10, 'none') from pgembed.pipelines"
    with connection.transaction():
        connection.execute(widen)
        for setting in ("hnsw.iterative_scan", "ivfflat.iterative_scan"):
            assert connection.value("select current_setting(%s)", (setting,)) == "relaxed_order"
    for where in CONDITIONS:
        found = scores(ask(conninfo, indexed, limit=50, where=where)).tolist()
        assert found == sorted(found, reverse=True)


def test_hits_are_in_their_order_where_the_scan_names_them_in_another(
    connection: Connection, conninfo: str, reports: Pipeline
) -> None:
    """PostgreSQL 17 and later take the rows of a scan to be in the order that was asked of it."""
    vectors = np.random.default_rng(3).normal(size=(2 * ROWS, 8))
    connection.execute(
        "update reports_chunks set embedding = vector::vector"
        " from unnest(%s::text[]) with ordinality as listed (vector, number)"
        " where 2 * fulltext_id + chunk_index = number + 1",
        ([str((each / np.linalg.norm(each)).tolist()) for each in vectors],),
    )
    options = IndexOptions(m=4, ef_construction=8)
    build_index(connection, reports, plan(connection, reports, options))
    database = sql.Identifier(connection.info.dbname)
    for setting in ("enable_seqscan", "enable_sort"):
        statement = sql.SQL("alter database {} set {} = off")
        connection.execute(statement.format(database, sql.SQL(setting)))
    request = SearchRequest(limit=300, where="id % 10 = 7")
    with connect(conninfo) as session, session.transaction():
        relation = relation_of(session, reports, request)
        assert relation is not None
        session.execute("select pgembed.widen_scan(pipelines, 300, 'none') from pgembed.pipelines")
        session.execute("set local hnsw.ef_search = 10")  # so that it goes on many times
        with RawCursor(session) as cursor:
            rows = cursor.execute(relation.statement, (vector_text(QUERY), 300)).fetchall()
    distances = [row[5] for row in rows]
    assert len(distances) == 300
    assert distances == sorted(distances)


def test_each_record_once_by_its_best_chunk_with_how_many_match(
    connection: Connection, conninfo: str, indexed: Pipeline
) -> None:
    threshold = 0.5
    expected = brute_force(connection, "id % 2 = 0")
    best: dict[int, float] = {}
    for key, _, similarity in expected:
        best.setdefault(key, similarity)
    hits = ask(
        conninfo, indexed, limit=50, where="id % 2 = 0", per_record=True, threshold=threshold
    )
    assert len({hit.key for hit in hits}) == len(hits) == 50
    assert np.isclose(scores(hits), sorted(best.values(), reverse=True)[:50], atol=1e-5).all()
    for hit in hits:
        of_record = [each for each in expected if each[0] == hit.key]
        assert hit.matched == sum(similarity >= threshold for *_, similarity in of_record)


def test_records_without_end_are_found_once(conninfo: str, reports: Pipeline) -> None:
    hits = ask(conninfo, reports, limit=3 * ROWS, per_record=True)
    assert len(hits) == ROWS
    assert {hit.matched for hit in hits} == {2}


def test_pages_follow_one_another(conninfo: str, reports: Pipeline) -> None:
    whole = ask(conninfo, reports, limit=30, where="kind = 7")
    pages = [ask(conninfo, reports, limit=10, offset=at, where="kind = 7") for at in (0, 10, 20)]
    assert [hit for page in pages for hit in page] == whole


def test_pages_of_chunks_that_are_equally_near_do_not_overlap(
    connection: Connection, conninfo: str, reports: Pipeline
) -> None:
    connection.execute("update reports_chunks set embedding = '[1,1,0,0,0,0,0,0]'")
    for where in (None, "kind < 5"):
        pages = [ask(conninfo, reports, limit=3, offset=at, where=where) for at in range(0, 30, 3)]
        assert len({(hit.key, hit.chunk_index) for page in pages for hit in page}) == 30
    query = "select array_agg(key) from pgembed.search('reports', %s::real[], %s)"
    found = [connection.value(query, (QUERY.tolist(), count)) for count in (5, 10)]
    assert found[0] == found[1][:5]


def test_columns_of_source_and_target_are_shown_in_their_own_type(
    connection: Connection, conninfo: str, reports: Pipeline
) -> None:
    (hit,) = ask(conninfo, reports, limit=1, columns=("made", "chunk_index", "kind", "embedding"))
    row = connection.execute("select made, kind from reports where id = %s", (hit.key,)).fetchone()
    assert (hit.columns["made"], hit.columns["kind"]) == row
    assert hit.columns["chunk_index"] == hit.chunk_index


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("id >", "syntax error at end of input"),
        ("nothing = 1", 'column "nothing" does not exist'),
        ("id", "argument of WHERE must be type boolean"),
        ("true) or (true", "syntax error"),
        ("id = $1", "it has a parameter, $1"),
        ("reports.id = 1", "a column is named as it is, or as source.column"),
        ("public.reports.id = 1", "a column is named as it is, or as source.column"),
        ("1 / (id - id) = 1", "by --where 1 / (id - id) = 1: comparing its vectors: division by"),
        ("body like '\\'", "by --where body like '\\': "),
        (" ", "--where is empty"),
        ("true; commit; drop table public.reports", "more than one statement"),
    ],
)
def test_condition_that_is_none_is_refused_in_the_words_typed(
    conninfo: str, reports: Pipeline, where: str, words: str
) -> None:
    with pytest.raises(UsageError) as refused:
        ask(conninfo, reports, where=where)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_condition_changes_nothing(
    connection: Connection, conninfo: str, reports: Pipeline
) -> None:
    connection.execute("create sequence public.counter")
    with pytest.raises(UsageError, match="read-only transaction"):
        ask(conninfo, reports, where="nextval('public.counter') > 0")


def test_unknown_column_is_named_with_those_there_are(conninfo: str, reports: Pipeline) -> None:
    with pytest.raises(UsageError, match=r"--columns colour: neither public\.reports .* made"):
        ask(conninfo, reports, columns=("colour",))
    with pytest.raises(UsageError, match=r"^--columns \['kind', ''\]: one of the names is empty"):
        ask(conninfo, reports, columns=("kind", ""))


def test_vectors_in_a_column_and_keys_of_two_columns(conninfo: str, letters: Pipeline) -> None:
    hits = ask(conninfo, letters, where="b > '2026-01-15'", columns=("a",), limit=3)
    assert [hit.columns["a"] for hit in hits] == [15, 16, 17]
