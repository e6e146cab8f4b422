"""The consoles on which pgembed shows things: they print what others wrote, and do not obey it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgqueue_embed.foreign_text import printable_lines

if TYPE_CHECKING:
    from rich.console import Console


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that colours only what it is told to."""
    from rich.console import Console
    from rich.text import Text

    class PlainConsole(Console):
        """Makes every plain string printable: a line, a cell of a table, a title."""

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable_lines(text), **options)

    return PlainConsole(stderr=stderr, highlight=False, markup=False, soft_wrap=False)


def progress_console() -> Console:
    """Return a console on standard error, so that results can be piped."""
    return make_console(stderr=True)
