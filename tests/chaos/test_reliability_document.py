"""docs/reliability.md names tests that exist, and every world of the model."""

from __future__ import annotations

import re
from pathlib import Path

from tests.model.test_protocol import BROKEN, WORLDS

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
README = (TESTS.parent / "README.md").read_text(encoding="utf-8")


def test_every_test_that_is_named_exists() -> None:
    source = "\n".join(file.read_text(encoding="utf-8") for file in TESTS.rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", TEXT)
    assert len(named) > 20
    assert [name for name in named if f"def {name}(" not in source] == []


def first_cells(text: str, heading: str) -> list[str]:
    """Return the first cell of each line of the table below `heading`."""
    section = text.split(f"\n## {heading}", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\| (\S.*?) \| ", section, re.MULTILINE)


def test_readme_says_what_is_tested_line_by_line() -> None:
    promised = first_cells(README, "What happens when")
    assert len(promised) > 10
    _, *tested = first_cells(TEXT, "What happens when, line by line")
    assert tested == promised


def test_every_world_of_the_model_is_in_the_table() -> None:
    assert [world for world in (*WORLDS, *BROKEN) if f"\n| {world} | " not in TEXT] == []
