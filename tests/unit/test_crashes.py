"""Conclusions of a supervisor from deaths of its worker processes."""

from __future__ import annotations

from pgqueue_embed.worker.crashes import Crash, unexplained


def death(*keys: str, known_suspects: bool = False, committed: bool = False) -> Crash:
    held = frozenset((1, key) for key in keys)
    return Crash(keys=held, known_suspects=known_suspects, committed=committed)


ONE, TWO = death("1", "2"), death("3")


def in_turn(*deaths: Crash) -> list[Crash]:
    known: list[Crash] = []
    for each in deaths:
        known = unexplained(known, each)
    return known


def test_deaths_on_different_records_with_nothing_committed_are_unexplained() -> None:
    last = death("4", "5")
    assert in_turn(ONE, TWO, last) == [ONE, TWO, last]
    began = death("9", committed=True)
    assert in_turn(ONE, began, TWO) == [began, TWO], "what was committed was before its death"


def test_a_death_on_a_suspect_or_on_nothing_says_nothing_of_the_machine() -> None:
    suspect, nothing, same = death("1", known_suspects=True), death(), death("2", "7")
    assert in_turn(ONE, suspect, nothing, same, TWO) == [ONE, TWO]


def test_a_machine_that_has_committed_can_work() -> None:
    assert in_turn(ONE, TWO, death("1", known_suspects=True, committed=True)) == []
