"""The size of a round of searches follows from the index scans of its own kind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pgqueue_embed.search_server.paces import (
    LAST_ROUNDS,
    MOST_KINDS,
    ROUND_SCANS,
    Paces,
    round_size,
)
from pgqueue_embed.vector_search.request import SearchRequest

PIPELINE: Any = SimpleNamespace(id=1)
FEW, MANY = SearchRequest(limit=5), SearchRequest(limit=1_000)


def test_a_round_is_as_large_as_its_scans_are_quick() -> None:
    assert round_size([]) == 1, "nothing is known yet"
    assert round_size([60, 0.5, 0.4]) == 2 * ROUND_SCANS
    assert round_size([ROUND_SCANS]) == round_size([60 * ROUND_SCANS]) == 1


def test_scans_that_have_become_slow_are_not_taken_for_quick_once_more() -> None:
    assert round_size([0.5] * 7 + [60]) == 1
    assert round_size([0.5] * 6 + [60, 0.5]) == 2 * ROUND_SCANS


def test_a_quick_kind_makes_no_large_rounds_of_a_slow_one() -> None:
    paces = Paces()
    for _ in range(LAST_ROUNDS):
        paces.note(PIPELINE, FEW, 0.25)
    paces.note(PIPELINE, MANY, 8)
    assert paces.round_size(PIPELINE, FEW) == 4 * ROUND_SCANS
    assert paces.round_size(PIPELINE, MANY) == 2


def test_kinds_without_end_take_no_memory_without_end() -> None:
    paces = Paces()
    paces.note(PIPELINE, FEW, 0.25)
    for limit in range(1, MOST_KINDS):
        paces.note(PIPELINE, SearchRequest(limit=1_000 + limit), 8)
    assert paces.round_size(PIPELINE, FEW) == 4 * ROUND_SCANS
    paces.note(PIPELINE, MANY, 8)
    assert paces.round_size(PIPELINE, FEW) == 1, "it is known no longer"
