"""The variant that is taken, by rates, canaries and real batches of a test's own."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding import probe as probing
from pgqueue_embed.embedding.choice import Choice, first_that_agrees
from pgqueue_embed.embedding.contest import LONGEST_SECONDS, TURNS, Contest, Run, is_faster
from pgqueue_embed.embedding.precision import (
    BF16,
    BF16_PACKED,
    BF16_WEIGHTS,
    FP32,
    FP32_PACKED,
    Variant,
    candidates,
)
from pgqueue_embed.embedding.probe import AS_GOOD, HOPELESS, probe, ranked, time_in_turns
from tests.support.fake_device import chunks

ALL = candidates("cpu", "auto")
SOME = st.sets(st.sampled_from(ALL)).map(lambda some: [each for each in ALL if each in some])
RATE = st.floats(0.01, 1e4)


@st.composite
def rates(draw: st.DrawFn) -> dict[Variant, float]:
    """Draw what a probe may find: any rates, and always one of fp32."""
    others = draw(SOME)
    return {each: draw(RATE) for each in ALL if each == FP32 or each in others}


@given(rates())
def test_nothing_is_tried_that_is_clearly_slower_than_what_is_simpler(
    found: dict[Variant, float],
) -> None:
    order = ranked(found)
    assert order[-1] == FP32
    assert len(set(order)) == len(order)
    assert found[order[0]] >= AS_GOOD * max(found.values())
    for place, taken in enumerate(order):
        others = [each for each in found if each not in order[:place]]
        fastest = max(found[each] for each in others)
        assert found[taken] >= AS_GOOD * fastest
        simpler = others[: others.index(taken)]
        assert all(found[each] < AS_GOOD * fastest for each in simpler)
    left = set(found) - set(order)
    assert all(AS_GOOD * found[each] <= found[FP32] for each in left)


def test_fp32_by_other_products_has_to_agree_more_nearly_than_a_lower_precision() -> None:
    near = 0.9999  # what bf16 may reach, which a library may compute where fp32 is asked for
    assert first_that_agrees([BF16, FP32], "cpu", lambda _: near)[0] == BF16
    taken, refused = first_that_agrees(
        [FP32_PACKED, FP32], "cpu", {FP32_PACKED: near, FP32: 1.0}.__getitem__
    )
    assert taken == FP32
    assert "cosine 0.9999" in refused[FP32_PACKED]
    assert "needed 0.99999" in refused[FP32_PACKED]


@given(rates(), st.data())
def test_the_first_that_agrees_is_taken_whatever_the_others_do(
    found: dict[Variant, float], data: st.DataObject
) -> None:
    outcome = st.one_of(st.floats(-1, 1), st.just(float("nan")), st.builds(RuntimeError, st.text()))
    outcomes = {each: data.draw(outcome) for each in ranked(found)}
    asked: list[Variant] = []

    def cosine_of(variant: Variant) -> float:
        asked.append(variant)
        result = outcomes[variant]
        if isinstance(result, Exception):
            raise result
        return result

    taken, refused = first_that_agrees(ranked(found), "cpu", cosine_of)
    agreeing = [
        each
        for each, result in outcomes.items()
        if isinstance(result, float) and result >= each.lowest_cosine
    ]
    assert taken == (agreeing[0] if agreeing else None)
    assert asked == [*refused, *([taken] if taken else [])]
    assert all("\n" not in reason and str(each) in reason for each, reason in refused.items())


def test_a_person_reads_what_was_chosen_and_by_how_much_the_others_lost() -> None:
    choice = Choice(
        variant=BF16_WEIGHTS,
        rates={FP32: 1.0, FP32_PACKED: 2.0, BF16: 3.2, BF16_WEIGHTS: 4.0, BF16_PACKED: 5.0},
        refused=(BF16_PACKED,),
    )
    assert str(choice) == (
        "bf16 weights (of its rate: bf16 weights, oneDNN 1.25 (refused); bf16 by autocast 0.80;"
        " fp32, oneDNN 0.50; fp32 0.25)"
    )
    assert str(Choice(variant=FP32)) == "fp32"
    assert choice.rival == BF16
    assert Choice(variant=BF16, rates=choice.rates, is_confirmed=True).rival is None
    assert Choice(variant=FP32_PACKED, rates={FP32: 0.9, FP32_PACKED: 2.0}).rival is None


class Clock:
    """Tells the seconds that passes take which a test makes up."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


SECONDS = st.floats(1e-6, 1e3)


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=TURNS, max_size=TURNS))
def test_real_batches_decide_once_they_have_had_their_turns(
    seconds: list[tuple[float, float]],
) -> None:
    clock, sizes = Clock(), []

    def run(seconds_taken: list[float]) -> Run:
        def passing(batch: Sequence[Chunk], _length: int | None) -> None:
            sizes.append(len(batch))
            clock.now += seconds_taken.pop(0)

        return passing

    own, rival = (run([turn[side] for turn in seconds]) for side in (0, 1))
    contest = Contest(own, rival)
    batch = chunks("c", 40)
    answers = [contest.take_turn(batch, None, clock) for _ in range(TURNS)]
    assert answers[:-1] == [None] * (TURNS - 1)
    assert answers[-1] is not None
    assert sizes[:2] == [1, 1]
    assert all(1 <= size <= 40 for size in sizes)
    for turn in range(1, TURNS):
        size, before = sizes[2 * turn], sizes[2 * turn - 1]
        assert size == 1 or size * max(seconds[turn - 1]) <= before * LONGEST_SECONDS * 1.01


@pytest.mark.parametrize(
    ("turns", "answer"),
    [
        ([(1.0, 9.0), (1.0, 0.5), (1.0, 0.5), (1.0, 2.0)], True),
        ([(9.0, 1.0), (1.0, 1.0), (1.0, 0.95), (1.0, 1.0)], False),
        ([(1.0, 1.0), (1.0, 0.0), (1.0, 0.0), (1.0, 0.0)], True),
    ],
)
def test_a_rival_has_to_be_clearly_faster_and_the_first_turn_does_not_count(
    turns: list[tuple[float, float]], answer: bool
) -> None:
    assert is_faster(turns) is answer


def test_what_is_hopeless_has_one_turn() -> None:
    clock, turns = Clock(), {FP32: 0, BF16: 0}
    took = {FP32: 0.01, BF16: 0.01 * HOPELESS + 0.001}

    def passing(variant: Variant) -> None:
        turns[variant] += 1
        clock.now += took[variant]

    passes = {each: (lambda each=each: passing(each)) for each in turns}
    seconds = time_in_turns(passes, clock=clock)
    assert turns[BF16] == 1 < turns[FP32]
    assert seconds[BF16] == pytest.approx([took[BF16]])


def test_a_probe_of_this_machine_has_a_rate_or_a_reason_of_each_and_is_made_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probe.cache_clear()
    found = probe(ALL, "cpu")
    assert set(found.rates) | set(found.failures) == set(ALL)
    assert FP32 in found.rates
    assert all(reason and "\n" not in reason for reason in found.failures.values())
    monkeypatch.setattr(probing, "_prepared", pytest.fail)
    assert probe(ALL, "cpu") is found


def test_a_variant_that_cannot_be_computed_here_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared = probing._prepared

    def lacking(variant: Variant, device: str) -> probing.Pass:
        if variant.packed:
            raise RuntimeError("no such operator\nand a long trace")
        return prepared(variant, device)

    monkeypatch.setattr(probing, "_prepared", lacking)
    probe.cache_clear()
    found = probe(ALL, "cpu")
    probe.cache_clear()
    assert found.failures[FP32_PACKED] == "no such operator"
    assert not {FP32_PACKED, BF16_PACKED} & set(ranked(found.rates))
