"""Reading the project's documents."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path


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
