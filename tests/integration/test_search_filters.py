"""Search with a condition: never fewer than there are, whatever the index gives up on."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from psycopg import sql

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search.index import plan
from pgqueue_embed.vector_search.index_build import build_index
from pgqueue_embed.vector_search.index_plan import IndexOptions
from pgqueue_embed.vector_search.query import Hit, search
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support.pipelines import make_pipeline

ROWS = 2_000
CHUNKS = 2 * ROWS
QUERY = np.eye(1, 8, dtype=np.float32)[0]

# Of 2,000 rows: none, 2, 40, 1,000.
CONDITIONS = ("kind = 5000", "id % 1000 = 7", "kind = 7", "id % 2 = 0")

SOURCE = """
create table public.reports as
select n as id, 'text of ' || n as body, n % 50 as kind, date '2026-01-01' + n as made
from generate_series(1, {rows}) as n;
alter table public.reports add primary key (id);
create index on public.reports (kind)
"""

# Two chunks a record, in directions that depend on both, and not on what a condition looks at.
FILL = """
insert into {target} (fulltext_id, chunk_id, chunk_index, text_chunk, start_char, end_char, tokens,
    embedding)
select id, id || '-' || chunk, chunk, 'chunk ' || chunk || ' of ' || id, 10, 20, 2,
    array[cosd(angle), sind(angle), 0, 0, 0, 0, 0, 0]
from (
    select id, chunk, 180.0 * ((id * 7919 + chunk * 1009) %% 10007) / 10007 as angle
    from public.reports cross join generate_series(0, 1) as chunk
) as angles
"""


@pytest.fixture
def reports(connection: Connection) -> Pipeline:
    """A pipeline over a source with columns to ask for, two chunks a record."""
    connection.execute(SOURCE.format(rows=ROWS))
    pipeline = make_pipeline(connection, copy_columns=("kind",))
    connection.execute(sql.SQL(FILL).format(target=pipeline.target.identifier), ())
    return pipeline


@pytest.fixture(params=["exact", "hnsw", "hnsw that gives up", "ivfflat"])
def indexed(
    request: pytest.FixtureRequest, connection: Connection, conninfo: str, reports: Pipeline
) -> Pipeline:
    """The same with each kind of index, one of which looks at a hundred chunks at most."""
    kind = request.param
    if kind != "exact":
        with connect(conninfo) as builder:
            method = kind.split()[0]
            build_index(builder, reports, plan(builder, reports, IndexOptions(method=method)))
    if "gives up" in kind:
        name = sql.Identifier(connection.info.dbname)
        limit = sql.SQL("alter database {} set hnsw.max_scan_tuples = 100").format(name)
        connection.execute("load 'vector'")
        connection.execute(limit)
    return reports


def brute_force(connection: Connection, where: str) -> list[tuple[int, int, float]]:
    """Return (id, chunk, similarity) of all that a condition lets in, best first."""
    rows = connection.execute(
        "select reports.id, chunk_index, embedding::real[] from reports join reports_chunks"
        f" on fulltext_id = reports.id where reports.id in (select id from reports where {where})"
    )
    found = [(key, index, float(np.dot(QUERY, vector))) for key, index, vector in rows]
    return sorted(found, key=lambda each: -each[2])


def ask(conninfo: str, pipeline: Pipeline, **asked: object) -> list[Hit]:
    request = SearchRequest(**{"threshold": -1.0, **asked})  # type: ignore[arg-type]
    with connect(conninfo) as own:
        return search(own, pipeline, QUERY, request)


def scores(hits: list[Hit]) -> NDArray[np.float64]:
    return np.array([hit.score for hit in hits])


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
        allowed = {(str(key), index) for key, index, _ in expected}
        assert {(hit.key, hit.chunk_index) for hit in hits} <= allowed


def test_each_record_once_by_its_best_chunk_with_how_many_match(
    connection: Connection, conninfo: str, indexed: Pipeline
) -> None:
    threshold = 0.5
    expected = brute_force(connection, "id % 2 = 0")
    best: dict[str, float] = {}
    for key, _, similarity in expected:
        best.setdefault(str(key), similarity)
    hits = ask(
        conninfo, indexed, limit=50, where="id % 2 = 0", per_record=True, threshold=threshold
    )
    assert len({hit.key for hit in hits}) == len(hits) == 50
    assert np.isclose(scores(hits), sorted(best.values(), reverse=True)[:50], atol=1e-5).all()
    for hit in hits:
        of_record = [each for each in expected if str(each[0]) == hit.key]
        assert hit.matched == sum(similarity >= threshold for *_, similarity in of_record)


def test_records_without_end_are_found_once(conninfo: str, reports: Pipeline) -> None:
    hits = ask(conninfo, reports, limit=3 * ROWS, per_record=True)
    assert len(hits) == ROWS
    assert {hit.matched for hit in hits} == {2}


def test_pages_follow_one_another(conninfo: str, reports: Pipeline) -> None:
    whole = ask(conninfo, reports, limit=30, where="kind = 7")
    pages = [ask(conninfo, reports, limit=10, offset=at, where="kind = 7") for at in (0, 10, 20)]
    assert [hit for page in pages for hit in page] == whole


def test_columns_of_source_and_target_are_shown_in_their_own_type(
    connection: Connection, conninfo: str, reports: Pipeline
) -> None:
    (hit,) = ask(conninfo, reports, limit=1, columns=("made", "chunk_index", "kind", "embedding"))
    row = connection.execute(
        "select made, kind from reports where id = %s", (int(hit.key),)
    ).fetchone()
    assert (hit.columns["made"], hit.columns["kind"]) == row
    assert hit.columns["chunk_index"] == hit.chunk_index


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("id >", "syntax error at end of input"),
        ("nothing = 1", 'column "nothing" does not exist'),
        ("id", "argument of WHERE must be type boolean"),
        ("true) or (true", "syntax error"),
        (" ", "--where is empty"),
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


def test_vectors_in_a_column_and_keys_of_two_columns(connection: Connection, conninfo: str) -> None:
    connection.execute(
        """
        create table public.letters (a int, b date, body text, embedding public.vector(8),
            primary key (a, b));
        insert into public.letters
        select n, date '2026-01-01' + n, 'text', array[cosd(n), sind(n), 0, 0, 0, 0, 0, 0]
        from generate_series(1, 20) as n
        """
    )
    pipeline = make_pipeline(
        connection,
        Table(schema="public", name="letters"),
        name="letters",
        id_fields=("a", "b"),
        into_column="embedding",
        chunking="none",
    )
    hits = ask(conninfo, pipeline, where="b > '2026-01-15'", columns=("a",), limit=3)
    assert [hit.columns["a"] for hit in hits] == [15, 16, 17]
