"""The size of batches, learnt from calls that take the seconds of a test's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding import DeviceThread, device_thread
from pgqueue_embed.embedding import batch_runner as runner_module
from pgqueue_embed.embedding.batch_sizes import (
    AS_GOOD,
    FEWEST_BATCHES,
    LONGEST_SECONDS,
    TURNS,
    BatchSizes,
    best_size,
)
from pgqueue_embed.embedding.shapes import SIZES_OF
from tests.support.fake_device import FakeModel, assert_right, chunks

SIZES = SIZES_OF["cpu"]
ENOUGH = FEWEST_BATCHES * max(SIZES)


@given(st.lists(st.floats(1e3, 1e6), min_size=len(SIZES), max_size=len(SIZES)))
def test_each_size_has_its_turns_and_the_fastest_is_taken(found: list[float]) -> None:
    rates = dict(zip(SIZES, found, strict=True))
    sizes = BatchSizes(SIZES, first=1_024)
    order: list[int] = []
    while sizes.best is None:
        order.append(sizes.next)
        sizes.took(sizes.next, ENOUGH, ENOUGH / rates[sizes.next])
    assert order[0] == 1_024
    assert sorted(order) == sorted(SIZES * TURNS)
    assert sizes.best == best_size(rates)
    assert rates[sizes.best] >= AS_GOOD * max(rates.values())


def test_the_smallest_wins_within_noise() -> None:
    assert best_size({512: 98.0, 1_024: 100.0, 2_048: 100.0}) == 512
    assert best_size({512: 90.0, 1_024: 98.0, 2_048: 100.0}) == 1_024
    assert best_size({512: 90.0, 1_024: 90.0, 2_048: 100.0}) == 2_048


def test_calls_that_fill_few_batches_tell_nothing() -> None:
    sizes = BatchSizes(SIZES, first=1_024)
    for _ in range(100):
        sizes.took(sizes.next, ENOUGH - 1, 1.0)
    assert (sizes.best, sizes.next) == (None, 1_024)


def test_of_a_slow_model_larger_batches_are_not_tried() -> None:
    sizes = BatchSizes(SIZES, first=1_024)
    seconds = LONGEST_SECONDS / 1_500 * ENOUGH
    tried = set()
    while sizes.best is None:
        tried.add(sizes.next)
        sizes.took(sizes.next, ENOUGH, seconds)
    assert tried == {512, 1_024}


def test_what_does_not_fit_is_not_tried_again() -> None:
    sizes = BatchSizes(SIZES, first=1_024)
    sizes.does_not_fit(1_024)
    assert sizes.next == 512
    sizes.does_not_fit(128)
    for _ in range(TURNS):
        sizes.took(512, ENOUGH, 1.0)
    assert sizes.best == 512


def untried(device: str = "cpu") -> FakeModel:
    """Return a model whose batches have no size yet."""
    model = FakeModel(device=device)
    model.limits = dataclasses.replace(model.limits, sizes_to_try=SIZES)
    return model


def test_real_calls_tell_the_size_and_their_vectors_are_those_of_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # By a made-up clock a batch takes the same time, whatever it holds.
    monkeypatch.setattr(device_thread, "time", Seconds())
    model, told = untried(), []
    wanted = chunks("c", ENOUGH // 100 + 1, tokens=100)
    thread = DeviceThread(lambda: model, on_batch_size=lambda _, tokens: told.append(tokens))
    sizes = set()
    try:
        for _ in range(TURNS * len(SIZES)):
            assert told == []
            model.batches.clear()
            result = thread.embed(wanted, anew=True)
            assert_right(result.vectors, wanted)
            sizes.add(max(len(texts) * length for texts, length in model.batches) // 1_000)
        wait_for_learning(thread)
        assert sizes == {0, 1, 2}
        assert told == [2_048]
        thread.embed(wanted, anew=True)
    finally:
        thread.close()
    assert told == [2_048]


class Seconds:
    """Stands for the module `time` of the device thread: at each look it is a little later."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 0.1
        return self.now


def wait_for_learning(thread: DeviceThread[FakeModel]) -> None:
    """Wait until the device thread has done all that comes behind a call."""
    thread.verify()


def test_memory_that_is_too_small_for_a_size_leaves_it_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner_module, "release_memory", lambda _: None)

    def limited(batch: Sequence[Chunk], length: int) -> None:
        if len(batch) * length > 1_100:
            raise RuntimeError("MPS backend out of memory")

    model = untried()
    model.hook = limited
    told: list[int] = []
    wanted = chunks("c", ENOUGH // 100 + 1, tokens=100)
    thread = DeviceThread(lambda: model, on_batch_size=lambda _, tokens: told.append(tokens))
    try:
        for _ in range(TURNS * len(SIZES)):
            assert np.isfinite(thread.embed(wanted, anew=True).vectors).all()
        wait_for_learning(thread)
    finally:
        thread.close()
    assert told
    assert told[0] <= 1_024


def test_a_model_with_a_size_has_nothing_to_learn() -> None:
    model = FakeModel()
    runner = runner_module.BatchRunner(model)
    assert runner.limits == runner.planned_for(1) == model.limits
    assert runner.learn(1_024, ENOUGH, 1.0) is None


def test_size_that_is_left_out_by_another_thread_meanwhile_is_no_fault() -> None:
    class Meanwhile(dict[int, list[float]]):
        """Has the largest size left out once all of them have been listed."""

        def __iter__(self) -> Iterator[int]:
            yield from super().__iter__()
            if sizes._rates is self:
                sizes._rates = {size: [] for size in SIZES if size != max(SIZES)}

    sizes = BatchSizes(SIZES, first=max(SIZES))
    sizes._rates = Meanwhile(sizes._rates)

    assert sizes.next in SIZES
    assert max(sizes._rates) < max(SIZES)
