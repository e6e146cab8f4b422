"""Sizes and delays: numbers in, numbers out."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqueue_embed.claim.size import (
    FIRST_CLAIM,
    MAX_CLAIM_BYTES,
    MAX_CLAIM_ITEMS,
    ClaimSize,
    Rate,
    next_claim_size,
    recovered_claim,
    smaller_claim,
)
from pgqueue_embed.claim.suspects import SPLIT_PARTS, split_size
from pgqueue_embed.queue.item_size import MAX_ITEM_RECORDS, records_per_item
from pgqueue_embed.queue.retry_delay import retry_delay_seconds
from pgqueue_embed.worker.delays import (
    poll_delay_seconds,
    reconnect_delay_seconds,
    restart_delay_seconds,
)


def rate(
    *,
    items: int = 4,
    text_bytes: int = 100_000,
    seconds: float = 4.0,
    own_seconds: float | None = None,
) -> Rate:
    own_seconds = seconds if own_seconds is None else own_seconds
    return Rate(items=items, text_bytes=text_bytes, own_seconds=own_seconds, seconds=seconds)


@pytest.mark.parametrize("items", [1, 2, 16])
def test_claims_that_run_out_of_time_get_smaller_down_to_one_record(items: int) -> None:
    size = ClaimSize(items=items, limit_bytes=1 << 20)
    seen = [size]
    for _ in range(7):
        seen.append(smaller_claim(seen[-1]))
    assert seen[-1] == ClaimSize(items=1, limit_bytes=64, records=1)
    assert all(after.records < before.records for before, after in pairwise(seen[:4]))


@given(seconds_a_record=st.floats(0.01, 4.0), lease_seconds=st.floats(4.5, 60.0))
def test_claims_of_a_slow_source_settle_where_they_are_in_time(
    seconds_a_record: float, lease_seconds: float
) -> None:
    size, late = FIRST_CLAIM, []
    for _ in range(60):
        records = min(size.records, 256 * size.items)
        seconds = records * seconds_a_record
        late.append(seconds > lease_seconds)
        if late[-1]:
            size = smaller_claim(size)
        else:
            rate = Rate(items=size.items, text_bytes=1000, own_seconds=seconds, seconds=seconds)
            size = next_claim_size(size, rate, target_seconds=min(8.0, lease_seconds / 2))
    assert not any(late[30:])


def test_limit_of_records_goes_once_claims_are_quick_again() -> None:
    size = ClaimSize(items=1, limit_bytes=1, records=1)
    for _ in range(6):
        size = recovered_claim(size)
    assert size.records == FIRST_CLAIM.records


@pytest.mark.parametrize(
    ("records", "size"),
    [(0, 8), (1, 8), (512, 8), (6_400, 100), (16_384, 256), (20_000_000, 256)],
)
def test_item_is_full_for_large_sources_and_shareable_for_small_ones(
    records: int, size: int
) -> None:
    assert records_per_item(records) == size


def test_retry_delay_doubles_up_to_an_hour() -> None:
    delays = [retry_delay_seconds(n, base_seconds=5, jitter=0.5) for n in range(1, 13)]
    assert delays[:4] == [5, 10, 20, 40]
    assert delays[-1] == 3600
    assert retry_delay_seconds(10_000, base_seconds=5, jitter=0.5) == 3600


@given(attempts=st.integers(1, 100), jitter=st.floats(0, 1, exclude_max=True))
def test_jitter_spreads_a_delay_by_a_quarter(attempts: int, jitter: float) -> None:
    middle = retry_delay_seconds(attempts, base_seconds=3, jitter=0.5)
    delay = retry_delay_seconds(attempts, base_seconds=3, jitter=jitter)
    assert 0.75 * middle <= delay <= 1.25 * middle


def test_retry_without_base_delay_is_immediate() -> None:
    assert retry_delay_seconds(3, base_seconds=0, jitter=0.9) == 0


def test_idle_poll_grows_from_one_to_two_seconds() -> None:
    delays = [poll_delay_seconds(polls, jitter=0.5) for polls in range(12)]
    assert delays[0] == 1
    assert delays == sorted(delays)
    assert delays[-1] == 2


def test_change_is_seen_within_three_seconds_by_an_idle_worker() -> None:
    assert max(poll_delay_seconds(polls, jitter=0.999) for polls in range(50)) <= 2.5


def test_reconnect_delay_grows_to_half_a_minute() -> None:
    delays = [reconnect_delay_seconds(failures, jitter=0.5) for failures in range(20)]
    assert delays[0] == 0.5
    assert delays == sorted(delays)
    assert delays[-1] == 30


def test_restart_delay_grows_to_a_minute() -> None:
    delays = [restart_delay_seconds(crashes) for crashes in range(1, 20)]
    assert delays[:3] == [0.5, 1, 2]
    assert delays[-1] == 60


def test_claim_that_takes_as_long_as_wanted_keeps_its_size() -> None:
    size = ClaimSize(items=4, limit_bytes=200_000)
    assert next_claim_size(size, rate(seconds=8), target_seconds=8) == size


def test_claim_that_waited_as_long_for_the_device_as_it_took_of_its_own_keeps_its_size() -> None:
    size = ClaimSize(items=4, limit_bytes=200_000)
    assert next_claim_size(size, rate(own_seconds=8, seconds=16), target_seconds=8) == size


def test_claim_that_waited_longer_shrinks_since_it_is_a_transaction() -> None:
    size = ClaimSize(items=4, limit_bytes=200_000)
    shrunk = next_claim_size(size, rate(own_seconds=8, seconds=32), target_seconds=8)
    assert shrunk == ClaimSize(items=2, limit_bytes=100_000)


def test_quick_claim_grows_fourfold_at_most() -> None:
    grown = next_claim_size(FIRST_CLAIM, rate(items=1, seconds=0.001), target_seconds=8)
    assert grown.items == 4
    assert grown.limit_bytes == 800_000


def test_claim_half_as_long_again_as_the_one_before_is_not_cut() -> None:
    size = next_claim_size(FIRST_CLAIM, rate(text_bytes=100_000, seconds=8), target_seconds=8)
    assert size.limit_bytes >= 150_000


def test_slow_claim_shrinks_but_never_to_nothing() -> None:
    slow = rate(items=1, text_bytes=10, seconds=1000)
    shrunk = next_claim_size(FIRST_CLAIM, slow, target_seconds=8)
    assert shrunk.items == 1
    assert shrunk.limit_bytes == 32 * 1024


@given(
    items=st.integers(1, 1000),
    text_bytes=st.integers(0, 10**9),
    seconds=st.floats(0, 10**5),
    target=st.floats(0.1, 60),
)
def test_claim_size_stays_within_its_limits(
    items: int, text_bytes: int, seconds: float, target: float
) -> None:
    done = rate(items=items, text_bytes=text_bytes, seconds=seconds)
    size = next_claim_size(ClaimSize(items=16, limit_bytes=1 << 20), done, target_seconds=target)
    assert 1 <= size.items <= MAX_CLAIM_ITEMS
    assert 32 * 1024 <= size.limit_bytes <= MAX_CLAIM_BYTES


@given(st.integers(1, MAX_ITEM_RECORDS))
def test_split_leaves_at_most_sixteen_smaller_parts(records: int) -> None:
    size = split_size(records)
    assert -(-records // size) <= SPLIT_PARTS
    assert size < records or records == 1


def test_a_full_item_is_down_to_single_records_after_two_splits() -> None:
    assert split_size(split_size(MAX_ITEM_RECORDS)) == 1
