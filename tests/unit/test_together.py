"""Searches that run together get what each of them would get alone, by fewer statements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from pgqueue_embed.db.packed import HEADER_BYTES, PackedArray, pack_reals
from pgqueue_embed.db.steps import Rows, Step, Steps
from pgqueue_embed.vector_search.together import NearestStep, together

# A step is of any statement, or of one about a vector, of which some are known for many.
Asks = tuple[str, int]
PLAIN, NEAREST, NEAREST_ALONE = "plain", "nearest", "nearest alone"
asks = some.tuples(some.sampled_from([PLAIN, NEAREST, NEAREST_ALONE]), some.integers(0, 2))
# How a search goes on follows from what it has found: some look once more.
searches = some.lists(some.lists(asks, max_size=4), min_size=1, max_size=5)


def step_of(asked: Asks, search: int) -> Step:
    kind, number = asked
    if kind == PLAIN:
        return Step("plain", (number,))
    of_many = "nearest of many" if kind == NEAREST else None
    return NearestStep(kind, values=(vector(search), number), raw=True, of_many=of_many)


def vector(search: int) -> PackedArray:
    return pack_reals(np.array([search, 0.5], np.float32))


def numbers(packed: PackedArray) -> list[list[float]]:
    """Return the vectors that were packed, of two numbers each."""
    words = np.frombuffer(packed.payload, ">f4", offset=HEADER_BYTES)
    return words[1::2].reshape(-1, 2).tolist()


def answered(step: Step) -> Rows:
    """Answer as a database would: of a vector, as many rows as its first number says."""
    values: Any = step.values
    if step.query == "plain":
        return [("plain", *values)]
    packed, number, *count = values
    vectors = numbers(packed)
    assert count == ([len(vectors)] if step.query == "nearest of many" else [])
    rows = [
        (place, each, number)
        for place, each in enumerate(vectors, start=1)
        for _ in range(int(each[0]))
    ]
    return rows if count else [(each, asked) for _, each, asked in rows]


def searching(wanted: list[Asks], search: int) -> Steps[list[Rows]]:
    found = []
    for asked in wanted:
        rows = yield step_of(asked, search)
        found.append(rows)
        if len(rows) % 2:
            found.append((yield step_of((PLAIN, len(rows)), search)))
    return found


def run(steps: Steps[Any]) -> tuple[Any, int]:
    """Return what they come to, and how many statements that took."""
    sent, rows = 0, None
    try:
        while True:
            rows = answered(steps.send(rows))  # type: ignore[arg-type]
            sent += 1
    except StopIteration as end:
        return end.value, sent


@given(searches)
def test_each_gets_what_it_gets_alone(wanted: list[list[Asks]]) -> None:
    alone = [run(searching(each, number)) for number, each in enumerate(wanted)]
    found, sent = run(together([searching(each, number) for number, each in enumerate(wanted)]))
    assert found == [answer for answer, _ in alone]
    assert sent <= sum(count for _, count in alone)


def test_what_all_of_them_ask_is_sent_once() -> None:
    wanted = [[(PLAIN, 1), (NEAREST, 2), (PLAIN, 2)]] * 32
    _, alone = run(searching(wanted[0], 2))
    _, sent = run(together([searching(each, 2) for each in wanted]))
    assert sent == alone


def test_an_error_of_one_ends_them_all() -> None:
    def failing() -> Steps[None]:
        yield Step("plain", (1,))
        raise ValueError("none of the others' doing")

    with pytest.raises(ValueError, match="others"):
        run(together([failing(), searching([(PLAIN, 1)], 0)]))


def test_an_error_of_a_single_one_is_its_own() -> None:
    def mending() -> Steps[str]:
        try:
            yield Step("plain", (1,))
        except ValueError:
            return "mended"
        return ""

    steps = together([mending()])
    next(steps)
    with pytest.raises(StopIteration) as end:
        steps.throw(ValueError("from the database"))
    assert end.value.value == ["mended"]
