"""Search by an index of smaller vectors: as good as brute force, and never fewer than there are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from psycopg import sql

from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import SetupError, UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search import index as index_module
from pgqueue_embed.vector_search.index import plan, vector_indexes
from pgqueue_embed.vector_search.index_build import build_index
from pgqueue_embed.vector_search.index_plan import IndexOptions
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.request import SearchRequest
from tests.conftest import DEFAULT_VERSION, OLDER_VERSION
from tests.support.corpus import make_source
from tests.support.directions import QUERIES, VECTORS, fill
from tests.support.pipelines import make_pipeline

# With each condition, the filter that says the same: all, none, 0.2 %, 2 %, 50 %.
FILTERS: tuple[tuple[str, dict[str, object]], ...] = (
    ("true", {}),
    ("kind = 5000", {"kind": 5000}),
    ("id in (7, 8, 9)", {"id": [7, 8, 9]}),
    ("kind = 7", {"kind": 7}),
    ("id <= 750", {"id": {"<=": 750}}),
)

# Method and quantization of an index, type of the vectors, whether it gives up early, and parts.
KINDS = [
    ("hnsw", "halfvec", "vector", False, None),
    ("hnsw", "binary", "vector", False, None),
    ("hnsw", "binary", "vector", True, None),
    ("hnsw", "binary", "halfvec", False, None),
    ("ivfflat", "halfvec", "vector", False, None),
    ("ivfflat", "binary", "vector", False, None),
    ("hnsw", "none", "vector", True, "hash:3"),
    ("hnsw", "binary", "vector", False, "hash:3"),
    ("ivfflat", "none", "vector", False, "range:id:1,900"),
]
# Each method, each quantization and each way of partitioning once.
KINDS_ON_THE_OLDER_SERVER = [KINDS[0], KINDS[7], KINDS[8]]

on_every_kind = pytest.mark.parametrize(
    ("server", "quantized"),
    [
        *((DEFAULT_VERSION, kind) for kind in KINDS),
        *((OLDER_VERSION, kind) for kind in KINDS_ON_THE_OLDER_SERVER),
    ],
    indirect=True,
    ids=lambda given: " ".join(map(str, given)) if isinstance(given, tuple) else f"pg{given}",
)


@dataclass(frozen=True)
class Quantized:
    """A pipeline with an index of smaller vectors, in a database that tests only read."""

    conninfo: str
    pipeline: Pipeline


@pytest.fixture(scope="module")
def quantized(
    request: pytest.FixtureRequest, lasting_database: Callable[[], AbstractContextManager[str]]
) -> Iterator[Quantized]:
    method, quantize, vector_type, gives_up, partition_by = request.param
    with lasting_database() as conninfo:
        with connect(conninfo) as builder:
            pipeline = fill(builder, vector_type, partition_by)
            options = IndexOptions(method=method, quantize=quantize)
            build_index(builder, pipeline, plan(builder, pipeline, options))
            keep_from_sorting(builder, gives_up=gives_up)
        yield Quantized(conninfo, pipeline)


def keep_from_sorting(connection: Connection, *, gives_up: bool) -> None:
    """Have later sessions read the index of a table so small that it would be sorted instead."""
    limits = {"enable_seqscan": "off", "enable_sort": "off"}
    if gives_up:
        limits["hnsw.max_scan_tuples"] = "100"
    connection.execute("load 'vector'")
    for name, value in limits.items():
        connection.execute(
            sql.SQL("alter database {} set {} = {}").format(
                sql.Identifier(connection.info.dbname), sql.SQL(name), sql.Literal(value)
            )
        )


def nearest(connection: Connection, where: str, query: NDArray[np.float32]) -> list[int]:
    """Return the ids that a condition lets in, nearest first, by brute force."""
    rows = connection.execute(f"select id from public.reports where {where}").fetchall()
    ids = np.array([key for (key,) in rows], dtype=int)
    return list(ids[np.argsort(-(VECTORS[ids - 1] @ query), kind="stable")]) if len(ids) else []


@on_every_kind
@pytest.mark.parametrize("limit", [10, 60])
def test_program_and_sql_find_what_brute_force_finds(quantized: Quantized, limit: int) -> None:
    found = wanted = 0
    with connect(quantized.conninfo) as own:
        for query in QUERIES:
            for where, only in FILTERS:
                expected = nearest(own, where, query)[:limit]
                request = SearchRequest(limit=limit, threshold=-1.0, where=where)
                by_program = [
                    int(hit.key_text) for hit in search(own, quantized.pipeline, query, request)
                ]
                by_sql = [
                    int(key)
                    for (key,) in own.execute(
                        "select key from pgembed.search('reports', %s::real[], %s::integer, %s)",
                        (query.tolist(), limit, json.dumps(only)),
                    )
                ]
                assert by_program == by_sql, where
                assert len(by_sql) == len(expected), where
                found += len(set(by_sql) & set(expected))
                wanted += len(expected)
    assert found >= 0.97 * wanted


@on_every_kind
@pytest.mark.parametrize("per_record", [False, True])
@pytest.mark.parametrize("where", [None, "id > 0"])
def test_all_are_found_by_who_asks_for_more_than_can_be(
    quantized: Quantized, per_record: bool, where: str | None
) -> None:
    request = SearchRequest(limit=2**63 - 1, offset=1, per_record=per_record, where=where)
    with connect(quantized.conninfo) as own:
        assert len(search(own, quantized.pipeline, QUERIES[0], request)) == len(VECTORS) - 1


@on_every_kind
def test_scores_are_those_of_the_whole_vectors(quantized: Quantized) -> None:
    with connect(quantized.conninfo) as own:
        hits = search(own, quantized.pipeline, QUERIES[0], SearchRequest(limit=5, threshold=-1.0))
    similarities = [float(VECTORS[int(hit.key_text) - 1] @ QUERIES[0]) for hit in hits]
    assert similarities == sorted(similarities, reverse=True)
    assert np.allclose([hit.score for hit in hits], similarities, atol=1e-3)


@on_every_kind
def test_the_statement_of_a_search_reads_the_index(quantized: Quantized) -> None:
    with connect(quantized.conninfo) as own:
        (index,) = vector_indexes(own, quantized.pipeline)
        assert index.valid
        statement = own.value(
            "select pgembed.search_statement(pipelines, pgembed.chunk_rows(pipelines), null, '{}',"
            " pgembed.search_scan(pipelines)) from pgembed.pipelines"
        )
        own.execute("deallocate all")
        own.execute(f"prepare wanted (real[], integer) as {statement}")
        values = sql.SQL(", ").join([sql.Literal(QUERIES[0].tolist()), sql.Literal(5)])
        plan_lines = own.execute(sql.SQL("explain execute wanted ({})").format(values)).fetchall()
    # Of a partitioned table it is of each part, and called so.
    assert index.name.removeprefix(quantized.pipeline.target.name) in str(plan_lines)


@pytest.mark.on_both_servers
def test_halfvec_vectors_are_indexed_as_they_are(connection: Connection) -> None:
    pipeline = fill(connection, "halfvec")
    planned = plan(connection, pipeline, IndexOptions(quantize="halfvec"))
    build_index(connection, pipeline, planned)
    assert [index.quantize for index in vector_indexes(connection, pipeline)] == ["none"]


@pytest.mark.on_both_servers
@pytest.mark.parametrize(
    ("vector_type", "dimensions", "quantize", "fits"),
    [
        ("vector", 2_001, "none", ["halfvec", "binary"]),
        ("vector", 4_001, "none", ["binary"]),
        ("vector", 4_001, "halfvec", ["binary"]),
        ("halfvec", 4_001, "none", ["binary"]),
    ],
)
def test_what_fits_too_many_dimensions_is_named_and_can_be_built(
    connection: Connection, vector_type: str, dimensions: int, quantize: str, fits: list[str]
) -> None:
    pipeline = make_pipeline(
        connection, make_source(connection), vector_type=vector_type, dimensions=dimensions
    )
    with pytest.raises(UsageError) as refused:
        plan(connection, pipeline, IndexOptions(quantize=quantize))
    named = [each for each in ("halfvec", "binary") if f"--quantize {each}" in str(refused.value)]
    assert named == fits
    for each in fits:
        build_index(connection, pipeline, plan(connection, pipeline, IndexOptions(quantize=each)))
    assert sorted(index.quantize for index in vector_indexes(connection, pipeline)) == sorted(fits)


@pytest.mark.on_both_servers
def test_pgvector_that_knows_no_smaller_vectors_is_named(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pgqueue_embed.db.extension import VectorExtension

    pipeline = make_pipeline(connection, make_source(connection))
    old = VectorExtension(schema="public", version="0.6.2")
    monkeypatch.setattr(index_module, "vector_extension", lambda _: old)
    with pytest.raises(SetupError, match=r"pgvector 0\.6\.2 cannot index binary .* 0\.7"):
        plan(connection, pipeline, IndexOptions(quantize="binary"))
