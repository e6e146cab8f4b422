"""Conclusions from a sample: the interval, and the groups."""

from __future__ import annotations

from dataclasses import fields
from datetime import date
from typing import Any

import pytest

from pgqueue_embed.verification.result import Compared, Verification, wilson_interval
from pgqueue_embed.verification.sample import DrawnChunk


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (200, 200, 0.9811, 1.0),
        (0, 200, 0.0, 0.0188),
        (197, 200, 0.9568, 0.9949),
        (1, 2, 0.0945, 0.9055),
        (0, 0, 0.0, 1.0),
    ],
)
def test_interval_is_that_of_wilson(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-4)


def compared(key: str, cosine: float, **known: Any) -> Compared:
    values = {"length": 1.0, "worker": None, "precision": None, "day": None, **known}
    return Compared(key=key, chunk_index=0, cosine=cosine, **values)


@pytest.mark.parametrize(
    ("known", "named"),
    [
        ({"worker_id": 3, "host": "gpu-1.example.org", "pid": 42}, "gpu-1:42"),
        ({"worker_id": 3, "host": "gpu-1", "pid": 42}, "gpu-1:42"),
        ({"worker_id": 3}, "worker 3"),
        ({}, None),
    ],
)
def test_worker_is_named_by_host_and_process_or_by_its_number(
    known: dict[str, Any], named: str | None
) -> None:
    unknown = dict.fromkeys(each.name for each in fields(DrawnChunk))
    assert DrawnChunk(**{**unknown, **known}).worker == named


def test_sample_is_split_by_what_is_known() -> None:
    day = date(2026, 5, 1)
    found = Verification(
        compared=(
            compared("a", 1.0, worker="mac:1", precision="fp16", day=day),
            compared("b", 0.5, worker="mac:1", precision="fp16", day=day),
            compared("c", 0.9995, worker="linux:2", precision="fp32"),
            compared("d", 1.0, length=1.4),
        ),
        outdated=3,
        min_cosine=0.999,
    )
    assert [each.key for each in found.differing] == ["b", "d"]
    assert found.agreeing_share == 0.5
    groups = [(each.value, each.compared, each.differing) for each in found.groups("worker")]
    assert groups == [("linux:2", 1, 0), ("mac:1", 2, 1), (None, 1, 1)]
    (known, unknown) = found.groups("day")
    assert (known.value, known.lowest_cosine, known.median_cosine) == (day, 0.5, 0.75)
    assert unknown.value is None
    assert found.as_json()["groups"]["precision"][0]["value"] == "fp16"
