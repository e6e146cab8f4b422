"""The progress of `run` and `demo`, read from pgembed.progress: a live bar, or a line a minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from pgqueue_embed.cli.display import duration, progress_console, say
from pgqueue_embed.db import applications
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.untrusted.foreign_text import printable

if TYPE_CHECKING:
    from rich.console import Console

REFRESH_SECONDS = 0.5

# Where no terminal shows a bar: often enough for a person who wonders, seldom enough for a file.
LINE_SECONDS = 60.0

PROGRESS = """
select total, total - pending, dead, in_flight, live_workers, chunks_per_second, eta
from pgembed.progress
where pipeline = %s
"""


# How many records there are, how many are settled, and what else to know.
Show = Callable[[int, int, str], None]


class ProgressBar:
    """Shows how far one pipeline is whenever `update` is called, at most every `seconds`."""

    def __init__(
        self, connection: Connection, pipeline_name: str, show: Show, *, seconds: float
    ) -> None:
        self._connection = connection
        self._name = pipeline_name
        self._show = show
        self._seconds = seconds
        self._next = 0.0
        self._started = time.monotonic()

    def update(self) -> None:
        """Read the progress view and show it; a database that is away leaves it as it is."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._seconds
        self._read()

    def finish(self) -> None:
        """Show it for the last time, with the time it all took."""
        self._read(f"in {duration(time.monotonic() - self._started)}")

    def _read(self, facts: str | None = None) -> None:
        try:
            row = self._connection.execute(PROGRESS, (self._name,)).fetchone()
        except psycopg.Error:
            return
        if row is not None:
            self._show(row[0], row[1], facts or _facts(row))


def _facts(row: tuple[Any, ...]) -> str:
    _, _, dead, in_flight, workers, chunks_per_second, eta = row
    if not workers and not in_flight:
        return "starting workers"
    facts = [f"{chunks_per_second:,.0f} chunks/s" if chunks_per_second else "first batch"]
    if eta:
        facts.append(f"{duration(eta.total_seconds())} left")
    facts.append(f"{workers} worker" + ("" if workers == 1 else "s"))
    if dead:
        facts.append(f"{dead} dead")
    return " · ".join(facts)


class _RecordsColumn(ProgressColumn):
    """Records done of records in all, with thousands separated."""

    def render(self, task: Task) -> Text:
        total = "?" if task.total is None else f"{task.total:,.0f}"
        return Text(f"{task.completed:,.0f}/{total} records", style="progress.download")


@contextmanager
def progress_bar(conninfo: str, pipeline_name: str) -> Iterator[ProgressBar]:
    """Show progress on standard error: a bar that stays when it is done, or a line a minute."""
    out = progress_console()
    draws, seconds = (_bar, REFRESH_SECONDS) if out.is_terminal else (_lines, LINE_SECONDS)
    with (
        connect(conninfo, application_name=applications.PROGRESS) as connection,
        draws(out, printable(pipeline_name)) as show,
    ):
        shown = ProgressBar(connection, pipeline_name, show, seconds=seconds)
        try:
            yield shown
        finally:
            shown.finish()


@contextmanager
def _bar(out: Console, name: str) -> Iterator[Show]:
    columns = (
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(bar_width=24),
        _RecordsColumn(),
        TextColumn("{task.fields[facts]}", style="dim", markup=False),
    )
    with Progress(*columns, console=out) as bar:
        task = bar.add_task(name, total=None, facts="starting workers")
        yield lambda total, done, facts: bar.update(task, total=total, completed=done, facts=facts)


@contextmanager
def _lines(_: Console, name: str) -> Iterator[Show]:
    yield lambda total, done, facts: say(f"{name}: {done:,}/{total:,} records · {facts}", err=True)


class MinuteLines:
    """Says how far something is, in a line a minute on standard error; nothing at a terminal."""

    def __init__(self) -> None:
        self._is_mute = progress_console().is_terminal
        self._next = time.monotonic() + LINE_SECONDS

    def say(self, text: str) -> None:
        """Say `text`, if the last line was a minute ago."""
        if not self._is_mute and time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_SECONDS
            say(text, err=True)
