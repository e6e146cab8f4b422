"""A worker polls for work behind its last claim, and at the front once in a while."""

from __future__ import annotations

from pgqueue_embed.queue.claim_cursor import ClaimCursor


def test_first_claim_is_at_the_front() -> None:
    assert ClaimCursor().start() == {}


def test_later_claims_are_behind_the_last_claim_of_each_priority() -> None:
    cursor = ClaimCursor()
    cursor.start()
    cursor.advance(1, [7, 9, 8])
    cursor.advance(0, [12])
    assert cursor.start() == {0: 12, 1: 9}


def test_front_is_claimed_from_again_after_a_while() -> None:
    cursor = ClaimCursor(front_seconds=0.0)
    cursor.start()
    cursor.advance(1, [9])
    assert cursor.start() == {}
