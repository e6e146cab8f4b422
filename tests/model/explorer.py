"""Visiting every state that a model can reach, and the shortest way to a forbidden one."""

from __future__ import annotations

from collections import deque
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
    first = model.initial()
    cameby: dict[State, tuple[State, str] | None] = {first: None}
    before: dict[State, list[State]] = {}
    queue = deque([first])
    steps = 0
    while queue:
        state = queue.popleft()
        breach = model.breach(state)
        if breach:
            return _found(cameby, state, steps, breach)
        for name, following in model.steps(state):
            steps += 1
            before.setdefault(following, []).append(state)
            if following not in cameby:
                cameby[following] = (state, name)
                queue.append(following)
    stuck = _first_stuck(cameby, before, model.is_finished)
    if stuck is not None:
        return _found(cameby, stuck, steps, "nothing that can happen from here finishes the work")
    return Explored(states=len(cameby), steps=steps, breach=None, trace=[])


def _found(
    cameby: dict[State, tuple[State, str] | None], state: State, steps: int, breach: str
) -> Explored[State]:
    trace = [repr(state)]
    came = cameby[state]
    while came is not None:
        state, name = came
        trace.append(name)
        came = cameby[state]
    return Explored(states=len(cameby), steps=steps, breach=breach, trace=trace[::-1])


def _first_stuck(
    states: Iterable[State],
    before: dict[State, list[State]],
    is_finished: Callable[[State], bool],
) -> State | None:
    """Return a state from which no finished one is reachable, walking backwards from those."""
    able = {state for state in states if is_finished(state)}
    queue = list(able)
    while queue:
        for earlier in before.get(queue.pop(), ()):
            if earlier not in able:
                able.add(earlier)
                queue.append(earlier)
    return next((state for state in states if state not in able), None)
