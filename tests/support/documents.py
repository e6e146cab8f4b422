"""Reading the project's documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
OPERATIONS = REPOSITORY / "docs" / "operations.md"
MAUDE = REPOSITORY / "docs" / "maude.md"

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@cache
def text_of(document: Path) -> str:
    """Return what a document says."""
    return document.read_text(encoding="utf-8")


def marked_block(document: Path, mark: str, language: str) -> str:
    """Return the block that follows the comment ``<!-- mark -->``."""
    pattern = rf"<!-- {re.escape(mark)} -->\n```{language}\n(.*?)^```"
    found = re.search(pattern, text_of(document), re.DOTALL | re.MULTILINE)
    assert found, f"{document.name} has no {language} block marked '{mark}'"
    return found[1]


def prose(document: Path) -> str:
    """Return a document without its code blocks."""
    return FENCE.sub("", text_of(document))


def blocks(document: Path, language: str | None = None) -> list[str]:
    """Return the code blocks of a document, or those of one language."""
    found = FENCE.findall(text_of(document))
    return [block for name, block in found if language is None or name == language]


def tables(document: Path) -> Iterator[list[list[str]]]:
    """Yield each table as rows of cells, its header first."""
    for found in re.findall(r"(?:^\|.*\|\n)+", prose(document), re.MULTILINE):
        rows = [
            [cell.strip() for cell in line.strip().strip("|").split("|")]
            for line in found.splitlines()
        ]
        yield [row for row in rows if not re.fullmatch(r"[-: ]*", "".join(row))]
