"""Values of PostgreSQL as JSON: numbers with all their digits."""

from __future__ import annotations

import json
from datetime import date, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from pgqueue_embed.untrusted.plain_json import json_text

WRITTEN: list[tuple[Any, str]] = [
    (Decimal("12345678901234567890.123"), "12345678901234567890.123"),
    (Decimal("-0.1000000000000000000001"), "-0.1000000000000000000001"),
    (Decimal("1.50"), "1.5"),
    (Decimal("100.00"), "100"),
    (Decimal("100"), "100"),
    (Decimal("0.00"), "0"),
    (Decimal("1E-30"), "1E-30"),
    (Decimal("1.50E+400"), "1.50E+400"),
    (Decimal("1" + "0" * 5000), "1" + "0" * 5000),
    (Decimal("NaN"), '"NaN"'),
    (Decimal("-Infinity"), '"-Infinity"'),
    (2**70, str(2**70)),
    (0.1, "0.1"),
    ("1.50", '"1.50"'),
    ([Decimal("1.5"), {"a": [Decimal("2.5"), '"2.5']}], '[1.5, {"a": [2.5, "\\"2.5"]}]'),
    (date(2026, 1, 2), '"2026-01-02"'),
    (timedelta(minutes=1), "60.0"),
    (b"\x01\xff", r'"\\x01ff"'),
    (UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
]


@pytest.mark.parametrize(("value", "written"), WRITTEN)
def test_value_is_written_with_all_that_it_says(value: Any, written: str) -> None:
    assert json_text(value) == written
    json.loads(written, parse_int=Decimal)


def test_number_that_json_has_not_is_refused_unless_it_may_be() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text(float("nan"))
