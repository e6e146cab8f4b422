"""The plan of an index, in numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pgqueue_embed.db.extension import VectorExtension
from pgqueue_embed.db.pages import hnsw_vectors_a_page
from pgqueue_embed.errors import UsageError
from pgqueue_embed.vector_search.index_plan import (
    MEGABYTE,
    IndexOptions,
    IndexPlan,
    ServerLimits,
    element_bytes,
    ivfflat_bytes,
    plan_index,
    recommended_lists,
    usual_m,
)

SMALL_SERVER = ServerLimits(
    maintenance_work_mem_bytes=64 * MEGABYTE,
    shared_buffers_bytes=128 * MEGABYTE,
    max_parallel_workers=8,
    max_parallel_maintenance_workers=2,
)


def plan(rows: int, limits: ServerLimits = SMALL_SERVER, **options: Any) -> IndexPlan:
    return plan_index(IndexOptions(**options), rows=rows, vector_bytes=8 + 384 * 4, limits=limits)


@pytest.mark.parametrize(
    ("rows", "lists"),
    [(1, 1), (999, 1), (50_000, 50), (1_000_000, 1000), (4_000_000, 2000), (10**10, 32_768)],
)
def test_lists_follow_the_recommendation_of_pgvector(rows: int, lists: int) -> None:
    assert recommended_lists(rows) == lists


def test_ivfflat_without_rows_is_refused_with_a_way_out() -> None:
    with pytest.raises(UsageError, match="--method hnsw"):
        plan(0, method="ivfflat")


def test_lists_that_would_not_fit_the_memory_are_fewer() -> None:
    planned = plan(20_000_000, method="ivfflat")
    assert 1000 < planned.parameters["lists"] < 4472
    assert planned.memory_megabytes <= 1024


def test_lists_that_a_person_wants_get_the_memory_they_need() -> None:
    planned = plan(20_000_000, method="ivfflat", lists=4472)
    assert planned.memory_megabytes * MEGABYTE >= ivfflat_bytes(4472, 8 + 384 * 4)


@pytest.mark.parametrize(
    ("dimensions", "element", "m", "a_page"),
    [
        (384, "halfvec", 12, 8),
        (384, "vector", 16, 4),
        (384, "bit", 16, 23),
        (768, "halfvec", 16, 4),
        (1_024, "vector", 16, 1),
        (2_000, "vector", 16, 0),
    ],
)
def test_fewer_neighbours_are_taken_where_more_vectors_fit_on_a_page_then(
    dimensions: int, element: str, m: int, a_page: int
) -> None:
    size = element_bytes(element, dimensions)
    assert (usual_m(size), hnsw_vectors_a_page(size, m)) == (m, a_page)
    given = plan_index(IndexOptions(m=20), rows=9, vector_bytes=size, limits=SMALL_SERVER)
    assert given.parameters["m"] == 20
    usual = plan_index(IndexOptions(), rows=9, vector_bytes=size, limits=SMALL_SERVER)
    assert usual.parameters["m"] == m


@pytest.mark.parametrize(
    ("rows", "parts", "options", "candidates"),
    [
        (99_999, 1, {}, 64),
        (100_000, 1, {}, 128),
        (100_000, 2, {}, 64),
        (100_000, 1, {"ef_construction": 64}, 64),
        (10, 1, {"m": 40}, 80),
        (100_000, 1, {"m": 100}, 200),
    ],
)
def test_a_large_graph_is_built_with_more_candidates(
    rows: int, parts: int, options: dict[str, int], candidates: int
) -> None:
    planned = plan_index(
        IndexOptions(**options),  # type: ignore[arg-type]
        rows=rows,
        vector_bytes=8 + 384 * 4,
        limits=SMALL_SERVER,
        parts=parts,
        largest_share=1 / parts,
    )
    assert planned.parameters["ef_construction"] == candidates


def test_hnsw_gets_what_the_graph_needs() -> None:
    assert 150 < plan(100_000).memory_megabytes < 400


def test_memory_is_capped_by_what_the_server_can_spare() -> None:
    assert plan(20_000_000).memory_megabytes == 1024
    large = dataclasses.replace(SMALL_SERVER, shared_buffers_bytes=16_384 * MEGABYTE)
    assert plan(20_000_000, large).memory_megabytes == 8192


def test_memory_is_never_less_than_the_server_gives_anyway() -> None:
    generous = dataclasses.replace(SMALL_SERVER, maintenance_work_mem_bytes=4096 * MEGABYTE)
    assert plan(10, generous).memory_megabytes == 4096


def test_memory_that_a_person_names_is_taken() -> None:
    assert plan(20_000_000, memory_megabytes=3000).memory_megabytes == 3000


@pytest.mark.parametrize(("allowed", "workers"), [(8, 4), (3, 3), (0, 2)])
def test_parallel_workers_stay_within_the_servers(allowed: int, workers: int) -> None:
    limits = dataclasses.replace(SMALL_SERVER, max_parallel_workers=allowed)
    assert plan(10, limits).parallel_workers == workers


def test_processors_of_this_machine_limit_the_workers_that_help_one() -> None:
    limits = dataclasses.replace(SMALL_SERVER, processors=2)
    assert plan(10, limits).parallel_workers == 1


def test_pgvector_that_builds_in_parallel_with_a_fault_builds_alone() -> None:
    limits = dataclasses.replace(SMALL_SERVER, builds_in_parallel=False)
    assert plan(10, limits).parallel_workers == 0
    assert plan(10_000, limits, method="ivfflat").parallel_workers == 4


def test_graph_that_does_not_fit_is_known_with_what_it_needs() -> None:
    planned = plan(20_000_000)
    assert not planned.fits
    assert 40 * 1024 < planned.needed_megabytes < 60 * 1024
    assert plan(100_000).fits


@pytest.mark.parametrize(
    ("version", "faults", "in_parallel"),
    [
        ("0.5.1", ["vacuum"], False),
        ("0.6.0", ["CVE-2026-3172", "vacuum"], False),
        ("0.8.1", ["CVE-2026-3172", "vacuum"], False),
        ("0.8.2", ["vacuum"], True),
        ("0.8.4", [], True),
        ("1.0", [], True),
    ],
)
def test_faults_of_pgvector_are_known_by_its_version(
    version: str, faults: list[str], in_parallel: bool
) -> None:
    extension = VectorExtension(schema="public", version=version)
    assert extension.builds_in_parallel is in_parallel
    assert len(extension.faults()) == len(faults)
    for fault, word in zip(extension.faults(), faults, strict=True):
        assert word in fault


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"method": "btree"}, "--method btree"),
        ({"quantize": "int8"}, "--quantize int8: give none, halfvec, binary"),
        ({"m": 1}, "--m 1"),
        ({"m": 101}, "--m 101"),
        ({"ef_construction": 31}, "from 32 .twice --m 16. to 1000"),
        ({"ef_construction": 1001}, "--ef-construction 1001"),
        ({"lists": 4}, "--lists belongs to ivfflat"),
        ({"lists": 0, "method": "ivfflat"}, "--lists 0"),
        ({"lists": 40_000, "method": "ivfflat"}, "--lists 40000"),
        ({"memory_megabytes": 0}, "--memory 0"),
    ],
)
def test_what_pgvector_would_refuse_is_refused_at_once(
    options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        IndexOptions(**options)
