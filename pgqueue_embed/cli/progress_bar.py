"""The live bar of `run` and `demo`: read from pgembed.progress, as anybody else would."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from pgqueue_embed.cli.display import progress_console
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.untrusted.foreign_text import printable

REFRESH_SECONDS = 0.5

PROGRESS = """
select total, total - pending, dead, in_flight, live_workers, chunks_per_second, eta
from pgembed.progress
where pipeline = %s
"""


class ProgressBar:
    """Shows how far one pipeline is whenever `update` is called, at most twice a second."""

    def __init__(self, bar: Progress, connection: Connection, pipeline_name: str) -> None:
        self._bar = bar
        self._connection = connection
        self._name = pipeline_name
        self._task = bar.add_task(printable(pipeline_name), total=None, facts="starting workers")
        self._next = 0.0
        self._started = time.monotonic()

    def update(self) -> None:
        """Read the progress view and redraw; a database that is away leaves the bar as it is."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + REFRESH_SECONDS
        self._redraw()

    def finish(self) -> None:
        """Redraw for the last time, with the time it all took."""
        self._redraw(f"in {_duration(time.monotonic() - self._started)}")

    def _redraw(self, facts: str | None = None) -> None:
        try:
            row = self._connection.execute(PROGRESS, (self._name,)).fetchone()
        except psycopg.Error:
            return
        if row is not None:
            self._bar.update(self._task, total=row[0], completed=row[1], facts=facts or _facts(row))


def _facts(row: tuple[Any, ...]) -> str:
    _, _, dead, in_flight, workers, chunks_per_second, eta = row
    if not workers and not in_flight:
        return "starting workers"
    facts = [f"{chunks_per_second:,.0f} chunks/s" if chunks_per_second else "first batch"]
    if eta:
        facts.append(f"{_duration(eta.total_seconds())} left")
    facts.append(f"{workers} worker" + ("" if workers == 1 else "s"))
    if dead:
        facts.append(f"{dead} dead")
    return " · ".join(facts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


class _RecordsColumn(ProgressColumn):
    """Records done of records in all, with thousands separated."""

    def render(self, task: Task) -> Text:
        total = "?" if task.total is None else f"{task.total:,.0f}"
        return Text(f"{task.completed:,.0f}/{total} records", style="progress.download")


@contextmanager
def progress_bar(conninfo: str, pipeline_name: str) -> Iterator[ProgressBar]:
    """Open a bar on stderr with its own connection; it stays on the screen when it is done."""
    columns = (
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(bar_width=24),
        _RecordsColumn(),
        TextColumn("{task.fields[facts]}", style="dim", markup=False),
    )
    with (
        connect(conninfo, application_name="pgembed progress") as connection,
        Progress(*columns, console=progress_console()) as bar,
    ):
        shown = ProgressBar(bar, connection, pipeline_name)
        try:
            yield shown
        finally:
            shown.finish()
