"""docs/reliability.md names tests that exist, and figures that the model still prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.model.explorer import explore
from tests.model.test_protocol import BROKEN, WORLDS

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
SMALL_WORLDS = {name: model for name, (model, _) in BROKEN.items()}


def test_every_test_that_is_named_exists() -> None:
    source = "\n".join(file.read_text(encoding="utf-8") for file in TESTS.rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", TEXT)
    assert len(named) > 20
    assert [name for name in named if f"def {name}(" not in source] == []


@pytest.mark.parametrize("world", [*SMALL_WORLDS, "two faults, one change"])
def test_figures_of_the_model_are_those_that_it_prints(world: str) -> None:
    explored = explore(SMALL_WORLDS.get(world) or WORLDS[world])
    assert f"| {world} | {explored.states:,} | {explored.steps:,} |" in TEXT
