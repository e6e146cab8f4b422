"""Fair share: time in proportion to priority, whatever the claims are like."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import pytest

from pgqueue_embed.worker.fair_share import FairShare

SMALL, LARGE, THIRD = 1, 2, 3


def time_of_each(
    seconds: Mapping[int, float],
    priorities: Mapping[int, int],
    *,
    total_seconds: float = 1000.0,
    share: FairShare | None = None,
) -> dict[int, float]:
    """Return the time of each pipeline when `seconds` are what a claim of it takes."""
    share = share or FairShare()
    spent: dict[int, float] = defaultdict(float)
    while sum(spent.values()) < total_seconds:
        first, *_ = share.order(priorities)
        share.charge(first, seconds[first], priorities[first])
        spent[first] += seconds[first]
    return spent


def test_short_claims_are_not_starved_by_long_ones() -> None:
    spent = time_of_each({SMALL: 0.1, LARGE: 15.0}, {SMALL: 10, LARGE: 10})
    assert spent[SMALL] == pytest.approx(spent[LARGE], abs=15.1)


def test_time_is_in_proportion_to_priority() -> None:
    priorities = {SMALL: 10, LARGE: 20, THIRD: 70}
    spent = time_of_each({SMALL: 3.0, LARGE: 5.0, THIRD: 1.0}, priorities)
    for pipeline_id, priority in priorities.items():
        assert spent[pipeline_id] / sum(spent.values()) == pytest.approx(priority / 100, abs=0.01)


def test_newcomer_starts_level_and_neither_waits_nor_takes_all() -> None:
    share, claims = FairShare(), {SMALL: 1.0, LARGE: 1.0}
    time_of_each(claims, {LARGE: 10}, share=share)
    spent = time_of_each(claims, {SMALL: 10, LARGE: 10}, total_seconds=20, share=share)
    assert abs(spent[SMALL] - spent[LARGE]) <= 1


def test_idle_time_is_not_saved_up() -> None:
    share, claims = FairShare(), {SMALL: 1.0, LARGE: 1.0}
    time_of_each(claims, {SMALL: 10, LARGE: 10}, total_seconds=10, share=share)
    time_of_each(claims, {LARGE: 10}, share=share)
    spent = time_of_each(claims, {SMALL: 10, LARGE: 10}, total_seconds=20, share=share)
    assert abs(spent[SMALL] - spent[LARGE]) <= 1


def test_one_that_is_worked_on_already_lets_the_other_go_first() -> None:
    share, priorities = FairShare(), {SMALL: 10, LARGE: 10}
    first, second = share.order(priorities)
    share.charge(first, 8.0, 10)  # expected of a claim that another loop has just begun
    assert share.order(priorities) == [second, first]
    share.charge(first, -8.0, 10)  # there was nothing to claim
    assert share.order(priorities) == [first, second]


def test_nothing_to_claim_is_nobodys_turn() -> None:
    assert FairShare().order({}) == []
