"""The protocol keeps its promise in every interleaving, and needs each of its rules for that."""

from __future__ import annotations

import pytest

from tests.model.explorer import explore
from tests.model.mutex_order import MutexOrder
from tests.model.protocol import Protocol

WORLDS = {
    "two items of one record, two changes, one fault": Protocol(),
    "one item, three changes, one fault": Protocol(items=1, changes=3),
    "two faults, one change": Protocol(faults=2, changes=1),
    "one of the texts cannot be embedded": Protocol(poison=2),
    "changes are found by enqueue": Protocol(capture=False, items=1),
}

BROKEN = {
    "without the mutex": (Protocol(faults=0, mutex=False), "twice"),
    "without the re-check": (Protocol(faults=0, recheck=False), "not about the current text"),
    "unchanged records are settled before the mutex": (
        Protocol(faults=0, judge_unchanged_before_mutex=True),
        "not about the current text",
    ),
    "gone records are deleted without the mutex": (
        Protocol(faults=0, delete_gone_without_mutex=True),
        "not those of the ledger's text",
    ),
    "the ledger is read in the statement that locks": (
        Protocol(faults=0, read_ledger_with_lock=True),
        "progress counts another number",
    ),
    "enqueue takes a key in flight for pending": (
        Protocol(faults=0, capture=False, enqueue_trusts_items_in_flight=True),
        "not about the current text",
    ),
    "enqueue looks for gone records in the ledger alone": (
        Protocol(faults=0, capture=False, enqueue_finds_gone_by_ledger_alone=True),
        "not about the current text",
    ),
}


@pytest.mark.parametrize("world", WORLDS)
def test_promise_holds_in_every_interleaving(world: str) -> None:
    explored = explore(WORLDS[world])
    assert explored.breach is None, "\n".join(explored.trace)
    assert explored.states > 3_000


@pytest.mark.parametrize("rule", BROKEN)
def test_each_rule_of_the_protocol_is_needed(rule: str) -> None:
    model, breach = BROKEN[rule]
    explored = explore(model)
    assert breach in (explored.breach or "nothing is broken")
    assert len(explored.trace) > 5


def test_mutexes_in_one_order_cannot_deadlock() -> None:
    explored = explore(MutexOrder(orders=(("a", "b"), ("a", "b"))))
    assert explored.breach is None, "\n".join(explored.trace)


def test_mutexes_in_different_orders_deadlock() -> None:
    explored = explore(MutexOrder(orders=(("a", "b"), ("b", "a"))))
    assert explored.breach is not None
    assert explored.trace[:-1] == ["worker 0: locks a", "worker 1: locks b"]
