"""Numbers as all screens write them."""

from __future__ import annotations

from typing import Any

import pytest

from pgqueue_embed.monitoring.words import rate
from pgqueue_embed.quantities import percent, size


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0, "–"), (4.21, "4.2"), (99.94, "99.9"), (100, "100"), (1234.4, "1,234")],
)
def test_rate_is_short_and_nothing_is_a_dash(value: Any, shown: str) -> None:
    assert rate(value) == shown


def test_shares_and_sizes_are_written_in_one_way() -> None:
    assert [percent(0.6821), percent(1.0), percent(0.005, 0), percent(0.5, 0)] == [
        "68.2 %",
        "100.0 %",
        "0 %",
        "50 %",
    ]
    assert [size(0), size(1), size(40_000), size(2**20), size(2**31)] == [
        "0 MB",
        "1 kB",
        "40 kB",
        "1 MB",
        "2.0 GB",
    ]
