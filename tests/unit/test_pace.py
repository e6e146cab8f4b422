"""The rate over minutes and the time left: a range that holds, and that does not jump about."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqueue_embed.monitoring.bottleneck import StageSeconds, bottleneck
from pgqueue_embed.monitoring.pace import MOST_DOUBT, HistoryStep, Pace, pace_of, time_left

STEP_SECONDS = 20.0
LEFT = 1_000_000

Commit = tuple[float, float, int]


def commits_of(
    loops: int, seconds: float, records: int, *, seed: int, until: float = 1800.0
) -> list[Commit]:
    """Return (began, ended, records) of loops that work without a pause, by their end."""
    draw = random.Random(seed)
    commits = []
    for _ in range(loops):
        moment = draw.random() * seconds
        while moment < until:
            took = max(0.5, draw.gauss(seconds, seconds / 3))
            commits.append((moment, moment + took, max(1, int(draw.gauss(records, records / 3)))))
            moment += took
    return sorted(commits, key=lambda each: each[1])


def steps_at(commits: Sequence[Commit], now: float) -> list[HistoryStep]:
    """Return what a look at the moment `now` would read."""
    parts: dict[int, list[Commit]] = {}
    for commit in commits:
        if commit[1] <= now:
            parts.setdefault(int(commit[1] // STEP_SECONDS), []).append(commit)
    return [
        HistoryStep(
            records=sum(records for *_, records in part),
            began_seconds_ago=now - min(began for began, *_ in part),
            ended_seconds_ago=now - max(ended for _, ended, _ in part),
        )
        for _, part in sorted(parts.items())
    ]


FLEETS = [(1, 10.0, 50), (2, 16.0, 500), (10, 8.0, 500), (24, 16.0, 2_000)]


@pytest.mark.parametrize(("loops", "seconds", "records"), FLEETS)
def test_range_holds_the_truth_and_is_steady_from_look_to_look(
    loops: int, seconds: float, records: int
) -> None:
    held, jumps = [], []
    for seed in range(4):
        commits = commits_of(loops, seconds, records, seed=seed)
        truth = LEFT / (sum(n for *_, n in commits) / 1800)
        middles = []
        for now in range(20, 1600, 20):
            left = time_left(LEFT, pace_of(steps_at(commits, now)))
            if left is None:
                assert now < 400, "it is never known"
                continue
            held.append(left.low_seconds <= truth <= left.high_seconds)
            middles.append((left.low_seconds + left.high_seconds) / 2)
        jumps += [max(a / b, b / a) for a, b in pairwise(middles)]
    assert sum(held) / len(held) > 0.8
    assert sorted(jumps)[int(0.99 * len(jumps))] < 1.2


def test_first_commits_give_no_number() -> None:
    commits = commits_of(2, 10.0, 100, seed=1)
    assert time_left(LEFT, pace_of(steps_at(commits, 45))) is None
    assert time_left(LEFT, pace_of([])) is None


def test_what_was_done_before_a_pause_counts_for_nothing() -> None:
    slow = [(began, ended, 1) for began, ended, _ in commits_of(1, 10.0, 1, seed=1, until=200)]
    quick = commits_of(1, 10.0, 500, seed=2, until=400)
    later = [(began + 600, ended + 600, records) for began, ended, records in quick]
    both, alone = (pace_of(steps_at(commits, 1000)) for commits in ([*slow, *later], later))
    assert both == alone
    assert pace_of(steps_at(later, 1400)) is None, "it has stopped"


@given(
    steps=st.lists(
        st.builds(
            lambda records, ended, took: HistoryStep(
                records=records, began_seconds_ago=ended + took, ended_seconds_ago=ended
            ),
            st.integers(0, 10**9),
            st.floats(-5, 2_000),
            st.floats(0, 1_000),
        )
    ).map(lambda steps: sorted(steps, key=lambda step: -step.ended_seconds_ago)),
    left=st.integers(1, 10**9),
)
def test_whatever_was_committed_a_range_is_positive_and_not_wild(
    steps: list[HistoryStep], left: int
) -> None:
    found = time_left(left, pace_of(steps))
    if found is not None:
        assert 0 < found.low_seconds < found.high_seconds
        assert found.high_seconds <= found.low_seconds * (1 + MOST_DOUBT) / (1 - MOST_DOUBT) * 1.01


def test_nothing_left_takes_no_time() -> None:
    pace = Pace(records_per_second=10.0, seconds=100.0, doubt=0.1)
    found = time_left(0, pace)
    assert found is not None
    assert found.high_seconds == 0.0


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (StageSeconds(embed_seconds=90, read_seconds=10), "90 % the device"),
        (StageSeconds(embed_seconds=10, read_seconds=30), "75 % reading"),
        (StageSeconds(write_seconds=80, lock_seconds=70, read_seconds=5), "82 % waiting for locks"),
        (StageSeconds(write_seconds=80, lock_seconds=10, read_seconds=5), "82 % writing"),
        (StageSeconds(embed_seconds=40, read_seconds=30, chunk_seconds=30), None),
        (StageSeconds(), None),
    ],
)
def test_bottleneck_is_named_where_most_of_the_time_goes(
    stages: StageSeconds, said: str | None
) -> None:
    assert bottleneck(stages) == said
