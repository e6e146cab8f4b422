"""The console on which progress is shown: standard error, so that results can be piped."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def progress_console() -> Console:
    """Return a console on standard error that colours only what it is told to."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False)
