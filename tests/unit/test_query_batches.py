"""How long the server waits for more queries, so that they become one batch."""

from __future__ import annotations

from pgqueue_embed.search_server.query_batches import (
    GATHER_SHARE,
    LEAST_GATHER_SHARE,
    MOST_GATHER_SECONDS,
    Gathering,
)


def test_waiting_is_for_those_who_come_back_and_little_for_those_who_do_not() -> None:
    gathering = Gathering(expected=32, round_seconds=0.2)
    assert gathering.patience_seconds == GATHER_SHARE * 0.2
    for _ in range(9):
        gathering = gathering.waited(before=19, after=22)  # of 13, ten search in between
    assert gathering.share == LEAST_GATHER_SHARE
    assert gathering.waited(before=32, after=33) == gathering, "nobody was waited for"
    for _ in range(9):
        gathering = gathering.waited(before=2, after=30)
    assert gathering.share == GATHER_SHARE
    assert Gathering(expected=64, round_seconds=60).patience_seconds == MOST_GATHER_SECONDS
    assert Gathering().patience_seconds == 0, "a first query waits for nobody"
