"""Several searches that read alike, in one transaction: what all of them send is sent once.

Each goes on by itself, step by step. Those that come to the same step at the same time get its
rows together, and where steps differ by a vector alone, one statement searches near all of these.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgqueue_embed.db.packed import join_reals
from pgqueue_embed.db.steps import Answer, Rows, Step, Steps


@dataclass(frozen=True, kw_only=True)
class NearestStep(Step):
    """A statement about the vector that is the first of its values, as `pack_reals` packs it.

    `of_many` is the same about several: $1 are the numbers of all of them, and behind the other
    values comes how many they are. Its rows begin with the place of the vector, from 1 on.
    """

    values: tuple[Any, ...]
    of_many: str | None = None


def together(searches: Sequence[Steps[Answer]]) -> Steps[list[Answer]]:
    """Run searches of one kind, and return what each comes to.

    An error of one ends all of them: whose it is comes out where each runs alone.
    """
    if len(searches) == 1:  # which may read on after an error
        return [(yield from searches[0])]
    answers: dict[int, Answer] = {}
    steps: dict[int, Step] = {}

    def go_on(number: int, rows: Rows | None) -> None:
        try:
            steps[number] = searches[number].send(rows)  # type: ignore[arg-type]
        except StopIteration as end:
            answers[number] = end.value

    for number in range(len(searches)):
        go_on(number, None)
    while steps:
        for alike in _alike(steps):
            found = yield from _sent([steps.pop(number) for number in alike])
            for number, rows in zip(alike, found, strict=True):
                go_on(number, rows)
    return [answers[number] for number in range(len(searches))]


def _alike(steps: Mapping[int, Step]) -> Iterable[list[int]]:
    """Return the numbers of the steps, together where one statement does for them."""
    groups: list[tuple[object, list[int]]] = []
    for number, step in steps.items():
        asks = _but_for_a_vector(step)
        for known, alike in groups:
            if known == asks:
                alike.append(number)
                break
        else:
            groups.append((asks, [number]))
    return [alike for _, alike in groups]


def _but_for_a_vector(step: Step) -> object:
    if isinstance(step, NearestStep) and step.of_many is not None:
        return step.of_many, step.values[1:]
    return step


def _sent(steps: Sequence[Step]) -> Steps[Sequence[Rows]]:
    """Send steps that are alike as one; returns the rows of each."""
    first = steps[0]
    if len(steps) == 1 or not isinstance(first, NearestStep) or first.of_many is None:
        rows = yield first
        return [rows] * len(steps)
    vectors = join_reals([step.values[0] for step in steps if isinstance(step, NearestStep)])
    values = (vectors, *first.values[1:], len(steps))
    merged = NearestStep(first.of_many, values=values, raw=True)
    found: list[Rows] = [[] for _ in steps]
    for place, *row in (yield merged):
        found[place - 1].append(tuple(row))
    return found


@dataclass(kw_only=True)
class Spent:
    """The seconds that statements took: those that search near vectors, and all others."""

    near: float = 0.0
    besides: float = 0.0


def timed(steps: Steps[Answer], spent: Spent) -> Steps[Answer]:
    """Run `steps`, and add to `spent` what each takes."""
    try:
        step = next(steps)
        while True:
            started = time.monotonic()
            try:
                rows = yield step
            except Exception as error:  # noqa: BLE001 - it is theirs
                step = steps.throw(error)
                continue
            seconds = time.monotonic() - started
            if isinstance(step, NearestStep):
                spent.near += seconds
            else:
                spent.besides += seconds
            step = steps.send(rows)
    except StopIteration as end:
        answer: Answer = end.value
        return answer
