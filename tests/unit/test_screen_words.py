"""Numbers as all screens write them."""

from __future__ import annotations

from typing import Any

import pytest

from pgqueue_embed.monitoring.words import rate


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0, "–"), (4.21, "4.2"), (99.94, "99.9"), (100, "100"), (1234.4, "1,234")],
)
def test_rate_is_short_and_nothing_is_a_dash(value: Any, shown: str) -> None:
    assert rate(value) == shown
