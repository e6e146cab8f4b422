"""Output for people (numbers, times, tables) and for programs (JSON)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import typer

from pgqueue_embed.untrusted.foreign_text import escaped, printable, printable_lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


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
    """Print `value` as indented JSON: times in ISO 8601, durations in seconds."""
    say(escaped(json.dumps(value, indent=2, ensure_ascii=False, default=_plain)))


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    return str(value)


def one_line(text: str | None) -> str:
    """Return a text of the user's for showing: white space collapsed, control characters gone."""
    return printable(text)


def count(number: int, noun: str) -> str:
    """Return ``1 record`` or ``2,000 records``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """Return a length of time by its two largest units: ``45 s``, ``1 min 59 s``, ``2 d 3 h``."""
    whole = int(seconds)
    parts = ((whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"))
    units = [*parts, (whole % 60, "s")]
    while len(units) > 1 and not units[0][0]:
        units.pop(0)
    largest, *rest = units
    second = [unit for unit in rest[:1] if unit[0]]
    return " ".join(f"{number} {name}" for number, name in (largest, *second))


# Up to so many seconds, a range is given in steps of so many.
SPAN_STEPS = ((90, 5), (600, 30), (3600, 60), (36000, 300), (172800, 3600))


def span(low_seconds: float, high_seconds: float) -> str:
    """Return a range of time in round numbers: ``40 – 55 s``, ``2 h 10 – 2 h 25 min``."""
    step = next((step for most, step in SPAN_STEPS if high_seconds < most), 21600)
    low = low_seconds // step * step
    high = -(-high_seconds // step) * step
    if not low:
        return f"less than {duration(high)}"
    if low == high:
        return duration(low)
    *first, unit = duration(low).split()
    last = duration(high).split()
    is_alike = unit == last[-1] and len(first) + 1 == len(last)
    return f"{' '.join(first if is_alike else [*first, unit])} – {' '.join(last)}"


def size(byte_count: int | None) -> str:
    """Return a number of bytes for reading: ``850 MB``, ``1.9 GB``, or nothing for None."""
    if byte_count is None:
        return ""
    megabytes = byte_count / 1024**2
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1024:.1f} GB"


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
