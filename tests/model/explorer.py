"""Visiting every state that a model can reach, and the shortest way to a forbidden one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

State = TypeVar("State", bound=Hashable)


class Model(Protocol[State]):
    """A finite system: where it begins, what it can do, and what must never be."""

    def initial(self) -> State:
        """Return the first state."""
        ...

    def steps(self, state: State) -> Iterable[tuple[str, State]]:
        """Return every step that can be taken in `state`, with its name."""
        ...

    def breach(self, state: State) -> str | None:
        """Return which promise `state` breaks, or None."""
        ...

    def is_finished(self, state: State) -> bool:
        """Return whether nothing is left to do in `state`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Explored(Generic[State]):
    """How many states and steps there are, and the shortest way to a breach if there is one."""

    states: int
    steps: int
    breach: str | None
    trace: list[str]


def explore(model: Model[State]) -> Explored[State]:
    """Visit every reachable state, breadth first; stops at the first breach.

    A state from which no finished one can be reached is a breach too: the system would hang.
    """
    states: list[State] = [model.initial()]
    # To hash a state takes longer than all else: it is done once a step, and numbers do after that.
    numbers: dict[State, int] = {states[0]: 0}
    came: list[tuple[int, str]] = [(0, "")]
    before: list[list[int]] = [[]]
    steps = 0
    for number, state in enumerate(states):
        breach = model.breach(state)
        if breach:
            return _found(states, came, number, steps, breach)
        for name, following in model.steps(state):
            steps += 1
            reached = numbers.setdefault(following, len(states))
            if reached == len(states):
                states.append(following)
                came.append((number, name))
                before.append([])
            before[reached].append(number)
    stuck = _first_stuck(states, before, model.is_finished)
    if stuck is not None:
        breach = "nothing that can happen from here finishes the work"
        return _found(states, came, stuck, steps, breach)
    return Explored(states=len(states), steps=steps, breach=None, trace=[])


def _found(
    states: list[State], came: list[tuple[int, str]], number: int, steps: int, breach: str
) -> Explored[State]:
    trace = [repr(states[number])]
    while number:
        number, name = came[number]
        trace.append(name)
    return Explored(states=len(states), steps=steps, breach=breach, trace=trace[::-1])


def _first_stuck(
    states: list[State], before: list[list[int]], is_finished: Callable[[State], bool]
) -> int | None:
    """Return a state from which no finished one is reachable, walking backwards from those."""
    queue = [number for number, state in enumerate(states) if is_finished(state)]
    able = set(queue)
    while queue:
        for earlier in before[queue.pop()]:
            if earlier not in able:
                able.add(earlier)
                queue.append(earlier)
    return next((number for number in range(len(states)) if number not in able), None)
