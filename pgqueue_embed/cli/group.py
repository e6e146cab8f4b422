"""The group of all commands, whose complaints about what was typed repeat it printably."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typer.core import TyperGroup

from pgqueue_embed.untrusted.foreign_text import MOST_CHARACTERS, printable


class PrintableGroup(TyperGroup):
    """A group of commands like any other, but for the texts of its errors."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Read the arguments in front of the command."""
        with _printable_errors():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        """Read the arguments of the command, and run it."""
        with _printable_errors():
            return super().invoke(ctx)


@contextmanager
def _printable_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Of click, or of the copy of it that typer brings along, by its version.
        if hasattr(error, "format_message"):
            vars(error)["message"] = printable(str(vars(error)["message"]), MOST_CHARACTERS)
        raise
