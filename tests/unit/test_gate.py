"""The gate: many together or one alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from pgqueue_embed.worker.gate import Gate
from tests.support.conditions import wait_until

Start = Callable[[Callable[[], None]], threading.Thread]


@pytest.fixture
def start() -> Iterator[Start]:
    """A function that runs another one in a thread, which must have ended at the end."""
    threads: list[threading.Thread] = []

    def run(action: Callable[[], None]) -> threading.Thread:
        threads.append(threading.Thread(target=action, daemon=True))
        threads[-1].start()
        return threads[-1]

    yield run
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


class Visitor:
    """Enters a gate in a thread, says so, and stays until it is let go."""

    def __init__(self, gate: Gate, kind: str, start: Start) -> None:
        self._enter = getattr(gate, kind)
        self.inside = threading.Event()
        self._leave = threading.Event()
        self.thread = start(self._visit)

    def _visit(self) -> None:
        with self._enter():
            self.inside.set()
            self._leave.wait(10)

    def is_inside(self) -> bool:
        return self.inside.wait(10)

    def leave(self) -> None:
        self._leave.set()
        self.thread.join(10)


def waits_for_exclusivity(gate: Gate) -> bool:
    return gate._waiting > 0


def test_many_share_the_gate(start: Start) -> None:
    gate = Gate()
    visitors = [Visitor(gate, "shared", start) for _ in range(3)]
    assert all(visitor.is_inside() for visitor in visitors)
    for visitor in visitors:
        visitor.leave()


def test_exclusive_visitor_waits_for_everybody_inside(start: Start) -> None:
    gate = Gate()
    first, second = Visitor(gate, "shared", start), Visitor(gate, "shared", start)
    assert first.is_inside()
    assert second.is_inside()
    alone = Visitor(gate, "exclusive", start)
    wait_until(lambda: waits_for_exclusivity(gate), "the exclusive visitor waits")
    first.leave()
    assert not alone.inside.is_set()
    second.leave()
    assert alone.is_inside()
    alone.leave()


def test_nobody_enters_beside_an_exclusive_visitor(start: Start) -> None:
    gate = Gate()
    alone = Visitor(gate, "exclusive", start)
    assert alone.is_inside()
    shared, other = Visitor(gate, "shared", start), Visitor(gate, "exclusive", start)
    wait_until(lambda: waits_for_exclusivity(gate), "the other exclusive visitor waits")
    assert not shared.inside.is_set()
    assert not other.inside.is_set()
    alone.leave()
    assert other.is_inside()
    assert not shared.inside.is_set()
    other.leave()
    assert shared.is_inside()
    shared.leave()


def test_newcomers_do_not_starve_an_exclusive_visitor(start: Start) -> None:
    gate = Gate()
    inside = Visitor(gate, "shared", start)
    assert inside.is_inside()
    alone = Visitor(gate, "exclusive", start)
    wait_until(lambda: waits_for_exclusivity(gate), "the exclusive visitor waits")
    newcomer = Visitor(gate, "shared", start)
    inside.leave()
    assert alone.is_inside()
    assert not newcomer.inside.is_set()
    alone.leave()
    assert newcomer.is_inside()
    newcomer.leave()


def test_gate_opens_again_after_an_error_inside() -> None:
    gate = Gate()
    with pytest.raises(ValueError, match="wrong"), gate.exclusive():
        raise ValueError("wrong")
    with pytest.raises(ValueError, match="wrong"), gate.shared():
        raise ValueError("wrong")
    with gate.exclusive():
        pass


def test_exclusive_and_shared_never_overlap_under_contention(start: Start) -> None:
    gate = Gate()
    inside = {"shared": 0, "exclusive": 0}
    overlaps: list[dict[str, int]] = []
    lock = threading.Lock()

    def visit(kind: str) -> None:
        for _ in range(200):
            with getattr(gate, kind)():
                with lock:
                    inside[kind] += 1
                    if inside["exclusive"] and sum(inside.values()) > 1:
                        overlaps.append(dict(inside))
                with lock:
                    inside[kind] -= 1

    threads = [start(partial(visit, kind)) for kind in ("shared", "exclusive") * 3]
    for thread in threads:
        thread.join(30)
    assert overlaps == []
