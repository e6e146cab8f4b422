"""Addresses of searches, messages that are said once, and times, as pages have them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from pgqueue_embed.web.searching import SearchForm
from pgqueue_embed.web.site import MOST_MESSAGES, Messages, ago


@pytest.mark.parametrize(
    "given",
    [
        {"q": "pump"},
        {"q": "pump", "limit": "4", "threshold": "0.5", "per_record": "1"},
        {"q": "pump", "where": "id < 5", "columns": "id,body", "hybrid": "1"},
    ],
)
def test_address_of_another_page_asks_for_the_same(given: dict[str, str]) -> None:
    values = SearchForm.of(given, "reports").values(20)
    assert {key: value for key, value in values.items() if value} == {
        **given,
        "pipeline": "reports",
        "offset": 20,
    }


def test_message_is_said_once_and_the_oldest_is_forgotten() -> None:
    messages = Messages()
    first, second, *_, last = [messages.keep(str(number)) for number in range(MOST_MESSAGES + 1)]
    assert messages.take(first) is None
    assert (messages.take(second), messages.take(second)) == ("1", None)
    assert messages.take(last) == str(MOST_MESSAGES)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-3, "just now"), (4, "just now"), (5, "5 s ago"), (119, "1 min ago"), (99_999, "1 d ago")],
)
def test_age_is_told_in_its_largest_unit(seconds: int, shown: str) -> None:
    now = datetime(2026, 11, 27, tzinfo=timezone.utc)
    assert ago(now - timedelta(seconds=seconds), now) == shown
