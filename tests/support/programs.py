"""Programs that some tests drive and pip does not install: used where a machine has them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable

import pytest

_ABSENT = "for want of "


def needs_program(name: str) -> pytest.MarkDecorator:
    """Return the mark of tests that are left out on a machine without the program `name`."""
    return needs(name, shutil.which(name) is not None)


def needs(name: str, is_there: bool) -> pytest.MarkDecorator:
    """Return the mark of tests that are left out unless what has that name `is_there`."""
    return pytest.mark.skipif(not is_there, reason=_ABSENT + name)


def left_out(reasons: Iterable[str]) -> str | None:
    """Return one line on the tests skipped for want of a program, None if there are none."""
    counts = Counter(reason.partition(_ABSENT)[2] for reason in reasons if _ABSENT in reason)
    named = [f"{count} tests for want of {name}" for name, count in sorted(counts.items())]
    return f"left out: {', '.join(named)}" if named else None
