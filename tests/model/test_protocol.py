"""The protocol keeps its promise in every interleaving, and needs each of its rules for that.

docs/reliability.md has a figure of each exploration, which is compared here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.model.explorer import Explored, Model, explore
from tests.model.generations import Generations
from tests.model.mutex_order import MutexOrder
from tests.model.protocol import Protocol

DOCUMENT = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text(encoding="utf-8")

WORLDS: dict[str, Model[Any]] = {
    "two items of one record, two changes, one fault": Protocol(),
    "one item, three changes, one fault": Protocol(items=1, changes=3),
    "two faults, one change": Protocol(faults=2, changes=1),
    "one of the texts cannot be embedded": Protocol(poison=2),
    "changes are found by enqueue": Protocol(capture=False, items=1),
    "row security is switched on and off": Protocol(changes=1, hidings=1),
    "generations are switched, two changes": Generations(crashes=0),
    "generations are switched, one change, one crash": Generations(changes=1),
    "generations are switched, changes are found by enqueue": Generations(crashes=0, capture=False),
}

BROKEN: dict[str, tuple[Model[Any], str]] = {
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
    "records that row security hides are taken for gone": (
        Protocol(faults=0, items=1, changes=0, hidings=1, no_rows_seen_are_gone=True),
        "not about the current text",
    ),
    "a switch looks once, and for nothing else": (
        Generations(crashes=0, hand_on=False, compare_ledgers=False),
        "has seen less",
    ),
    "the old generation does not hand on what it settles": (
        Generations(crashes=0, hand_on=False),
        "has seen less",
    ),
    "a claim looks for a successor before its re-check": (
        Generations(crashes=0, look_after_the_recheck=False),
        "has seen less",
    ),
    "a switch does not lock the generations": (
        Generations(crashes=0, capture=False, lock_generations=False),
        "not those of the current text",
    ),
    "a switch does not compare the ledgers": (
        Generations(crashes=0, compare_ledgers=False),
        "has seen less",
    ),
    "a switch does not wait for what was handed on": (
        Generations(crashes=0, wait_for_bulk=False),
        "has seen less",
    ),
    "a record that changes under its claim becomes a change": (
        Generations(crashes=0, capture=False, requeue_keeps_priority=False),
        "has seen less",
    ),
    "a switch trusts the scan of the new generation's beginning": (
        Generations(crashes=0, capture=False, scan_before_the_switch=False),
        "nothing that can happen from here finishes the work",
    ),
    "what waits for the old generation goes with it": (
        Generations(crashes=0, take_over_queue=False),
        "not those of the current text",
    ),
}


def is_documented(world: str, explored: Explored[Any]) -> bool:
    return f"| {world} | {explored.states:,} | {explored.steps:,} |" in DOCUMENT


@pytest.mark.parametrize("world", WORLDS)
def test_promise_holds_in_every_interleaving(world: str) -> None:
    explored = explore(WORLDS[world])
    assert explored.breach is None, "\n".join(explored.trace)
    assert explored.states > 3_000, explored.states
    assert is_documented(world, explored), explored


@pytest.mark.parametrize("rule", BROKEN)
def test_each_rule_of_the_protocol_is_needed(rule: str) -> None:
    model, breach = BROKEN[rule]
    explored = explore(model)
    assert breach in (explored.breach or "nothing is broken")
    assert len(explored.trace) > 5
    assert is_documented(rule, explored), explored


def test_mutexes_in_one_order_cannot_deadlock() -> None:
    explored = explore(MutexOrder(orders=(("a", "b"), ("a", "b"))))
    assert explored.breach is None, "\n".join(explored.trace)


def test_mutexes_in_different_orders_deadlock() -> None:
    explored = explore(MutexOrder(orders=(("a", "b"), ("b", "a"))))
    assert explored.breach is not None
    assert explored.trace[:-1] == ["worker 0: locks a", "worker 1: locks b"]
