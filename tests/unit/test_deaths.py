"""What a supervisor concludes from deaths of its worker processes."""

from __future__ import annotations

import pytest

from pgqueue_embed.worker.crashes import Death, machine_is_ill


def death(*keys: str, known_suspects: bool = False, committed: bool = False) -> Death:
    held = frozenset((1, key) for key in keys)
    return Death(keys=held, known_suspects=known_suspects, committed=committed)


def test_machine_is_ill_after_two_deaths_on_different_records_with_nothing_committed() -> None:
    assert machine_is_ill(death("1", "2"), death("3"))


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
    previous: Death | None, latest: Death
) -> None:
    assert not machine_is_ill(previous, latest)
