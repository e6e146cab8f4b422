"""Batches: every sequence once, few shapes, within the budget."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqueue_embed.embedding.shapes import Batch, BatchLimits, bucket, limits_for, plan_batches

LIMITS = st.builds(
    BatchLimits,
    max_tokens_per_batch=st.integers(1, 5_000),
    length_step=st.sampled_from([1, 8, 16]),
    fill=st.booleans(),
    batch_tokens=st.sampled_from([None, 0, 60]),
)
LENGTHS = st.lists(st.integers(1, 600), max_size=200)


@given(lengths=LENGTHS, limits=LIMITS)
def test_every_sequence_is_in_exactly_one_batch_and_fits(
    lengths: list[int], limits: BatchLimits
) -> None:
    batches = plan_batches(lengths, limits)
    assert sorted(row for batch in batches for row in set(batch.rows)) == list(range(len(lengths)))
    for batch in batches:
        assert all(lengths[row] <= batch.length for row in batch.rows)
        assert len(batch.rows) == 1 or (
            len(batch.rows) * batch.length <= limits.max_tokens_per_batch
        )


@given(lengths=LENGTHS)
def test_filled_batches_have_one_of_three_row_counts_per_length(lengths: list[int]) -> None:
    limits = limits_for("mps")
    for batch in plan_batches(lengths, limits):
        full = limits.rows_at(batch.length)
        assert len(batch.rows) in {full, full // 4, full // 16}


def test_a_chunk_size_gives_a_small_set_of_shapes_on_metal() -> None:
    limits = limits_for("mps")
    lengths = list(range(3, 131)) * 40
    shapes = {
        (len(batch.rows), batch.length)
        for size in (1, 5, 40, 300, 5_000)
        for batch in plan_batches(lengths[:size], limits, longest=130)
    }
    assert len(shapes) <= 3 * 9


def test_full_chunks_are_not_padded() -> None:
    assert {b.length for b in plan_batches([130] * 300, limits_for("mps"))} == {130}
    assert plan_batches([129], limits_for("mps"), longest=130)[0].length == 130


def test_without_filling_the_last_batch_is_small() -> None:
    assert plan_batches([10], limits_for("cpu"), longest=100) == [Batch(rows=(0,), length=10)]


def test_batch_on_a_cpu_is_as_long_as_its_longest_sequence() -> None:
    batches = plan_batches([130, 117, 140], limits_for("cpu"))
    assert [batch.length for batch in batches] == [140]
    assert {b.length for b in plan_batches([129] * 40 + [77] * 40, limits_for("cpu"))} == {129, 77}


@pytest.mark.parametrize("kind", ["mps", "cuda", "cpu"])
@pytest.mark.parametrize("length", [16, 128, 512])
def test_a_full_batch_has_as_many_tokens_whatever_its_length(kind: str, length: int) -> None:
    limits = limits_for(kind)
    assert limits.rows_at(length) * length == limits.max_tokens_per_batch


def cost(batches: list[Batch], batch_tokens: int) -> int:
    """Return what batches cost in tokens, padding included."""
    return sum(len(batch.rows) * batch.length + batch_tokens for batch in batches)


@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=9))
def test_no_parting_of_a_cpus_rows_costs_less(lengths: list[int]) -> None:
    limits = limits_for("cpu")
    assert limits.batch_tokens
    ordered = sorted(lengths, reverse=True)
    cheapest = min(
        sum(
            (end - begin) * ordered[begin] + limits.batch_tokens
            for begin, end in itertools.pairwise(ends)
        )
        for cuts in range(len(ordered))
        for chosen in itertools.combinations(range(1, len(ordered)), cuts)
        for ends in [(0, *chosen, len(ordered))]
        if all(
            end - begin == 1 or (end - begin) * ordered[begin] <= limits.max_tokens_per_batch
            for begin, end in itertools.pairwise(ends)
        )
    )
    assert cost(plan_batches(lengths, limits), limits.batch_tokens) == cheapest


def test_padding_of_short_sequences_is_a_tenth_at_most() -> None:
    lengths = [8 + row % 40 for row in range(360)]
    batches = plan_batches(lengths, limits_for("cpu"))
    assert sum(batch.tokens for batch in batches) < 1.1 * sum(lengths)


def test_padding_of_a_claim_is_a_twentieth_at_most_on_cuda() -> None:
    lengths = [130 - row % 30 for row in range(8_000)]
    batches = plan_batches(lengths, limits_for("cuda"))
    assert sum(batch.tokens for batch in batches) < 1.05 * sum(lengths)
    assert len(batches) < 25


def test_buckets_are_coarser_for_long_sequences() -> None:
    assert [bucket(n, 16) for n in (1, 16, 17, 128, 129, 250, 257, 8000)] == [
        *(16, 16, 32, 128, 160, 256, 320, 8192)
    ]


def test_halving_allows_half_the_rows() -> None:
    limits = limits_for("mps")
    assert limits.rows_at(128) == 128
    assert limits.halved(128, 128).rows_at(128) == 64
    assert limits.halved(1, 128).rows_at(128) == 1


@given(failed=st.lists(st.tuples(st.integers(2, 500), st.integers(1, 600)), min_size=1))
def test_limits_never_grow_when_a_batch_planned_by_older_ones_fails_later(
    failed: list[tuple[int, int]],
) -> None:
    limits = limits_for("cuda")
    for rows, length in failed:
        halved = limits.halved(rows, length)
        assert halved.max_tokens_per_batch <= limits.max_tokens_per_batch
        assert halved.rows_at(length) < rows
        limits = halved
    assert dataclasses.replace(limits, max_tokens_per_batch=1).rows_at(500) == 1
