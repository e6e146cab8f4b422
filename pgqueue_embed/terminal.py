"""How output looks on a terminal, and when it is piped."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console(*, error: bool = True) -> Console:
    """Return a console on stderr (progress) or stdout (results), without highlighting."""
    from rich.console import Console

    return Console(stderr=error, highlight=False, soft_wrap=not sys.stdout.isatty())
