"""Conclusions of a supervisor from deaths of its worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pgqueue_embed.errors import MachineFault
from pgqueue_embed.log import LogSettings
from pgqueue_embed.worker.crashes import DEADLY_RECORDS, Crash, Evidence
from pgqueue_embed.worker.settings import WorkerSettings
from pgqueue_embed.worker.stop_reasons import ANOTHER_MODEL, DRAINED, RECYCLED
from pgqueue_embed.worker.supervisor import Supervisor, _Process


def death(*keys: str, known_suspects: bool = False, settled: bool = False) -> Crash:
    held = frozenset((1, key) for key in keys)
    return Crash(keys=held, known_suspects=known_suspects, settled=settled)


ONE, TWO = death("1", "2"), death("3")


def in_turn(*deaths: Crash) -> Evidence:
    known = Evidence()
    for each in deaths:
        known = known.with_crash(each)
    return known


def test_three_deaths_on_different_records_with_nothing_settled_speak_against_the_machine() -> None:
    last = death("4", "5")
    assert in_turn(ONE, TWO).summary is None
    assert in_turn(ONE, TWO, last).summary == "3 different sets of records"
    began = death("9", settled=True)
    assert in_turn(ONE, began, TWO).unexplained == (began, TWO), "it was settled before the death"


def test_a_death_on_suspects_or_on_nothing_says_nothing_of_the_machine() -> None:
    suspects, nothing, same = death("1", "2", known_suspects=True), death(), death("2", "7")
    assert in_turn(ONE, suspects, nothing, same, TWO) == in_turn(ONE, TWO)


def test_many_single_records_in_a_row_that_kill_by_themselves_speak_against_it_as_well() -> None:
    deadly = [death(str(number), known_suspects=True) for number in range(DEADLY_RECORDS)]
    assert in_turn(*deadly[1:], *deadly[1:]).summary is None
    assert in_turn(*deadly).summary == "8 single records, one after the other,"


def test_a_machine_that_has_settled_a_record_can_work() -> None:
    assert in_turn(ONE, TWO, death("1", known_suspects=True, settled=True)).unexplained == ()


class ToldSupervisor(Supervisor):
    """One whose processes end as told: in a crash, or with a reason and how many are settled."""

    def __init__(self, *ends: Crash | tuple[str, int]) -> None:
        super().__init__("", WorkerSettings(), LogSettings())
        self._ends: Iterator[Crash | tuple[str, int]] = iter(ends)
        self._latest: Crash | None = None

    def _start(self) -> _Process:
        end = next(self._ends)
        popen: Any = SimpleNamespace(returncode=3)
        if isinstance(end, Crash):
            self._latest = end
            return _Process(popen=popen, reports=-1, worker_id=1)
        return _Process(popen=popen, reports=-1, worker_id=1, ended=end[0], settled=end[1])

    def _wait(self, process: _Process) -> None:
        pass

    def _pause(self, seconds: float) -> None:
        pass

    def _record(self, worker_id: int, how: str) -> Crash | None:
        return self._latest


@pytest.mark.parametrize("reason", [RECYCLED, ANOTHER_MODEL])
def test_what_a_process_has_settled_that_made_way_for_another_speaks_for_the_machine(
    reason: str,
) -> None:
    three, nothing_left = death("4"), (DRAINED, 0)
    with pytest.raises(MachineFault, match="3 different sets"):
        ToldSupervisor(ONE, (reason, 0), TWO, three, nothing_left).run()
    assert ToldSupervisor(ONE, TWO, (reason, 1), three, nothing_left).run() == DRAINED
