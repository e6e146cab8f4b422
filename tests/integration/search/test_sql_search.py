"""Search in SQL: right with and without an index, its filter data, its rights the caller's."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import psycopg
import pytest

from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.pipeline.pipeline import Pipeline
from tests.support.searching import QUERY, SEARCHED, ask, brute_force, scores

PREPARED = SEARCHED

# As a filter, and as the condition that it stands for.
FILTERS: tuple[tuple[dict[str, Any], str], ...] = (
    ({}, "true"),
    ({"kind": 5000}, "kind = 5000"),
    ({"id": [7, 1007]}, "id in (7, 1007)"),
    ({"kind": "7"}, "kind = 7"),
    ({"id": {">": 500, "<=": 700}, "kind": [1, 2]}, "id > 500 and id <= 700 and kind in (1, 2)"),
    ({"body": {"like": "%9"}}, "body like '%9'"),
    ({"body": {"NOT ILIKE": "TEXT%"}}, "body not ilike 'TEXT%'"),
    ({"body": None}, "body is null"),
    ({"kind": [None, 3]}, "kind is null or kind = 3"),
    ({"kind": [3, [4, None], 5, {">": 47}]}, "kind in (3, 4, 5) or kind > 47"),
    ({"body": {"=": None}}, "body is null"),
    ({"body": {"<>": None}, "kind": 9}, "kind = 9"),
    ({"kind": {"=": [3, None, 4], "<": 4}}, "kind = 3"),
    ({"body": {"<>": ["text 1", "text 2"]}, "id": [1, 2, 3]}, "id in (1, 2, 3)"),
    ({"kind": {"<>": [3, 4]}, "id": {"<=": 20}}, "kind not in (3, 4) and id <= 20"),
    ({"kind": {"<>": []}, "id": 7}, "id = 7"),
    ({"kind": []}, "false"),
    ({"made": {"<": "2026-02-01"}}, "made < '2026-02-01'"),
    ({"body": "it's \\ '; drop table reports; --"}, "false"),
    ({"chunk_index": 1, "kind": 4}, "kind = 4"),
)


def find(
    connection: Connection,
    wanted: Any = None,
    k: Any = 10,
    query: Any = QUERY,
    name: str = "reports",
) -> list[tuple[Any, ...]]:
    vector = None if query is None else np.asarray(query, dtype=np.float32).tolist()
    return connection.execute(
        "select * from pgembed.search(%s, %s::real[], %s::integer, %s)",
        (name, vector, k, json.dumps({} if wanted is None else wanted)),
    ).fetchall()


@pytest.mark.parametrize("k", [10, 100])
def test_never_fewer_than_there_are_and_the_nearest_of_them(
    connection: Connection, indexed: Pipeline, k: int
) -> None:
    for wanted, where in FILTERS:
        expected = brute_force(connection, where)
        if "chunk_index" in wanted:
            expected = [each for each in expected if each[1] == wanted["chunk_index"]]
        hits = find(connection, wanted, k)
        similarities = [similarity for *_, similarity in expected[:k]]
        assert len(hits) == len(similarities), wanted
        found = np.isclose([hit[1] for hit in hits], similarities, atol=1e-5)
        assert found.sum() >= 0.9 * len(similarities), wanted
        assert {(hit[0], hit[2]) for hit in hits} <= {(str(key), at) for key, at, _ in expected}


def test_hits_are_those_of_the_program(
    connection: Connection, conninfo: str, reports: Pipeline
) -> None:
    theirs = ask(conninfo, reports, limit=20, where="kind < 10")
    ours = find(connection, {"kind": {"<": 10}}, 20)
    assert [row[0] for row in ours] == [hit.key_text for hit in theirs]
    assert np.allclose([row[1] for row in ours], scores(theirs))
    assert [row[2:] for row in ours] == [
        (hit.chunk_index, hit.start_char, hit.end_char, hit.chunk) for hit in theirs
    ]


def test_a_vector_of_pgvector_is_taken_as_it_is(connection: Connection, reports: Pipeline) -> None:
    text = "[" + ",".join(map(str, QUERY.tolist())) + "]"
    rows = connection.execute(
        "select key from pgembed.search('reports', %s::public.vector, 3)", (text,)
    ).fetchall()
    assert rows == [(row[0],) for row in find(connection, k=3)]


def test_vectors_of_zeros_are_like_nothing_to_the_program_and_in_sql(
    connection: Connection, conninfo: str, reports: Pipeline
) -> None:
    connection.execute(
        "update reports_chunks set embedding = array_fill(0::real, array[8])::vector"
        " where fulltext_id = 7 and chunk_index = 0"
    )
    by_program = [hit.key_text for hit in ask(conninfo, reports, where="id in (7, 8)")]
    by_sql = connection.execute(
        "select key, score from pgembed.search('reports', %s::real[], 10, '{\"id\": [7, 8]}')",
        (QUERY.tolist(),),
    ).fetchall()
    assert by_program == [key for key, _ in by_sql]
    assert sorted(by_program) == ["7", "8", "8"]
    assert all(-1 <= score <= 1 for _, score in by_sql)
    (of_record,) = ask(conninfo, reports, where="id = 7", per_record=True)
    assert of_record.matched == 1


def test_settings_of_the_transaction_are_as_before(
    connection: Connection, indexed: Pipeline
) -> None:
    names = (
        "hnsw.ef_search",
        "hnsw.iterative_scan",
        "ivfflat.probes",
        "search_path",
        "row_security",
    )
    connection.execute("load 'vector'")
    with connection.transaction():
        connection.execute("set local hnsw.ef_search = 77")
        before = [connection.value("select current_setting(%s)", (name,)) for name in names]
        find(connection)
        assert [connection.value("select current_setting(%s)", (name,)) for name in names] == before


def test_vectors_in_a_column_and_keys_of_two_columns(
    connection: Connection, conninfo: str, letters: Pipeline
) -> None:
    hits = find(connection, {"b": {">": "2026-01-15"}}, 3, name="letters")
    assert [hit[0] for hit in hits] == [
        hit.key_text for hit in ask(conninfo, letters, where="b > '2026-01-15'", limit=3)
    ]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": None}, "k is null"),
        ({"query": None}, "the query has no numbers, and the vectors of reports have 8"),
        ({"query": [1.0, 2.0]}, "the query has 2 numbers, and the vectors of reports have 8"),
        ({"query": [0.0] * 8}, "the query is no direction"),
        ({"query": [float("nan")] * 8}, "the query is no direction"),
        ({"wanted": [1]}, r"a filter is a JSON object, and not: \[1\]"),
        ({"wanted": {"colour": 1}}, "the filter names 'colour', which neither public.reports"),
        ({"wanted": {"id) or (true": 1}}, "the filter names 'id\\) or \\(true'"),
        ({"wanted": {"id": {"= 1 or true or id =": 1}}}, "the filter compares source.id by"),
        ({"wanted": {"id": {">": None}}}, "compares source.id with null by '>'"),
        (
            {"wanted": {"body": {"like": ["a%", "b%"]}}},
            "compares source.body with a list by 'like'",
        ),
        ({"wanted": {"body": {"<>": {"a": 1}}}}, "operator does not exist: text <> jsonb"),
        ({"wanted": {"made": "soon"}}, 'invalid input syntax for type date: "soon"'),
        ({"name": "nothing"}, "there is no pipeline 'nothing'"),
    ],
)
def test_what_cannot_be_searched_for_is_refused_in_one_line(
    connection: Connection, reports: Pipeline, asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(psycopg.Error, match=words):
        find(connection, **asked)


def test_policies_hide_from_the_caller_what_they_hide(
    connection: Connection, conninfo: str, reports: Pipeline
) -> None:
    connection.execute(
        """
        create role reader login;
        grant usage on schema pgembed, public to reader;
        grant select on pgembed.pipelines, pgembed.vector_indexes to reader;
        grant select on public.reports, public.reports_chunks to reader;
        alter table public.reports_chunks enable row level security;
        create policy few on public.reports_chunks using (fulltext_id < 100);
        """
    )
    try:
        with connect(conninfo) as reader:
            reader.execute("set role reader")
            hits = find(reader, k=1000)
            assert len(hits) == 2 * 99
            assert {int(hit[0]) < 100 for hit in hits} == {True}
    finally:
        connection.execute("drop owned by reader; drop role reader")
