"""The choice of cuts, on classes alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pgqueue_embed.chunking import boundaries
from pgqueue_embed.chunking.boundaries import (
    CLAUSE,
    INSIDE,
    JOINT,
    NOWHERE,
    PARAGRAPH,
    SENTENCE,
    WORD,
)


def plan(classes: list[int], max_tokens: int, overlap_tokens: int = 0) -> list[tuple[int, int]]:
    return list(
        boundaries.plan_chunks(bytes(classes), max_tokens=max_tokens, overlap_tokens=overlap_tokens)
    )


@given(
    classes=st.lists(st.integers(INSIDE, PARAGRAPH), max_size=200),
    budget=st.integers(1, 20).flatmap(
        lambda most: st.tuples(st.just(most), st.integers(0, (most - 1) // 2))
    ),
)
def test_ranges_cover_all_tokens_in_order(classes: list[int], budget: tuple[int, int]) -> None:
    covered, last_first = 0, -1
    for first, end in plan(classes, *budget):
        assert last_first < first <= covered < end <= first + budget[0]
        assert covered - first <= budget[1]
        assert first in (0, covered) or classes[first] >= WORD
        covered, last_first = end, first
    assert covered == len(classes)


def test_what_fits_is_not_cut() -> None:
    assert plan([PARAGRAPH] * 10, 10) == [(0, 10)]
    assert plan([], 10) == []


def test_a_paragraph_beyond_half_the_budget_beats_a_later_sentence() -> None:
    classes = [WORD] * 30
    classes[6], classes[9] = PARAGRAPH, SENTENCE
    assert plan(classes, 10)[0] == (0, 6)


def test_a_paragraph_in_the_first_half_is_passed_over() -> None:
    classes = [WORD] * 30
    classes[5], classes[8] = PARAGRAPH, CLAUSE
    assert plan(classes, 10)[0] == (0, 8)


def test_a_clause_needs_three_quarters_of_the_budget() -> None:
    classes = [WORD] * 30
    classes[7] = CLAUSE
    assert plan(classes, 10)[0] == (0, 10)


def test_an_early_clause_is_better_than_cutting_a_word() -> None:
    classes = [INSIDE] * 30
    classes[3] = CLAUSE
    assert plan(classes, 10)[0] == (0, 3)


def test_only_a_word_longer_than_the_budget_is_cut_and_at_a_joint_first() -> None:
    classes = [WORD] + [INSIDE] * 24
    assert plan(classes, 10) == [(0, 10), (10, 20), (20, 25)]
    classes[7] = JOINT
    assert plan(classes, 10)[0] == (0, 7)


def test_the_overlap_gives_way_to_a_word_that_needs_the_room() -> None:
    classes = [WORD] * 10 + [WORD] + [INSIDE] * 8 + [WORD] * 3
    assert plan(classes, 10, 3) == [(0, 10), (10, 20), (19, 22)]


def test_a_character_is_never_parted() -> None:
    assert plan([WORD, NOWHERE, NOWHERE, WORD, NOWHERE], 2) == [(0, 3), (3, 5)]
