"""Conclusions of a supervisor from deaths of its worker processes."""

from __future__ import annotations

import pytest

from pgqueue_embed.worker.crashes import Crash, is_machine_at_fault


def death(*keys: str, known_suspects: bool = False, committed: bool = False) -> Crash:
    held = frozenset((1, key) for key in keys)
    return Crash(keys=held, known_suspects=known_suspects, committed=committed)


def test_machine_is_ill_after_two_deaths_on_different_records_with_nothing_committed() -> None:
    assert is_machine_at_fault(death("1", "2"), death("3"))


@pytest.mark.parametrize(
    ("previous", "latest"),
    [
        (None, death("3")),
        (death("1"), death("1", "3")),
        (death("1"), death("3", committed=True)),
        (death("1"), death("3", known_suspects=True)),
        (death(), death("3")),
        (death("1"), death()),
    ],
    ids=["first", "same record", "committed", "suspects", "held nothing", "holds nothing"],
)
def test_any_other_death_may_be_the_fault_of_a_record(
    previous: Crash | None, latest: Crash
) -> None:
    assert not is_machine_at_fault(previous, latest)
