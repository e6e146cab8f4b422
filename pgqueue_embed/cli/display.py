"""Output for people (numbers, times, tables) and for programs (JSON)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgqueue_embed.untrusted.foreign_text import escaped, printable, printable_lines
from pgqueue_embed.untrusted.plain_json import json_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# The option of commands whose output is JSON of what they print otherwise.
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def console() -> Console:
    """Return a console on standard output that colours only what it is told to."""

    return make_console()


def say(text: str, *, err: bool = False, fg: str | None = None, nl: bool = True) -> None:
    """Print `text`, whoever wrote parts of it, to standard output, or to standard error."""
    shown = printable_lines(text)
    if fg is not None and _takes_colour():
        shown = typer.style(shown, fg=fg)
    typer.echo(shown, err=err, nl=nl)


def _takes_colour() -> bool:
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def confirm(question: str) -> None:
    """Ask a person, and leave the command when the answer is no."""
    typer.confirm(printable_lines(question), abort=True)


def plain_table(left: Sequence[str], right: Sequence[str] = ()) -> Table:
    """Return a table without borders: columns of text at the left, of numbers at the right."""
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        header_style="bold",
        border_style="dim",
        pad_edge=False,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    for title in left:
        table.add_column(title, overflow="fold")
    for title in right:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def print_json(value: Any) -> None:
    """Print `value` as indented JSON, as `json_text` writes it."""
    say(escaped(json_text(value, indent=2, allow_nan=True)))


def one_line(text: str | None) -> str:
    """Return a text of the user's for showing: white space collapsed, control characters gone."""
    return printable(text)


def make_console(
    *, stderr: bool = False, width: int | None = None, is_screen: bool = False
) -> Console:
    """Return a console that colours only what it is told to; with `is_screen`, on any stream."""
    from rich.console import Console
    from rich.text import Text

    class PlainConsole(Console):
        """Makes every plain string printable: a line, a cell of a table, a title."""

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable_lines(text), **options)

    return PlainConsole(
        stderr=stderr,
        highlight=False,
        markup=False,
        soft_wrap=False,
        width=width,
        force_terminal=True if is_screen else None,
    )


def progress_console() -> Console:
    """Return a console on standard error, so that results can be piped."""
    return make_console(stderr=True)
