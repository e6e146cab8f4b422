"""Shows work as it goes on, for `status --watch`, `work`, `run` and `demo`: a screen, or lines."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, BinaryIO, TextIO

from pgqueue_embed.cli import minute_lines
from pgqueue_embed.cli.display import say
from pgqueue_embed.cli.live import Screen, ending
from pgqueue_embed.cli.terminal import Terminal, is_screen
from pgqueue_embed.monitoring import words
from pgqueue_embed.monitoring.watcher import Watcher
from pgqueue_embed.quantities import duration

if TYPE_CHECKING:
    from pgqueue_embed.monitoring.snapshot import Snapshot

SCREEN_SECONDS = 2.0
# Ten machines that write lines for a file should cost the server next to nothing.
LINES_SECONDS = 15.0
# Where nothing changes, a line now and then tells idle from hung.
UNCHANGED_SECONDS = 3600.0

# What hinders the first look ends what would be watched, as a rule, with an error that says it.
BEGINNING_SECONDS = 60.0

# Of what is logged behind a screen, what is looked at for its last lines.
TAIL_BYTES = 8192

STOPS_AFTER_CLAIMS = "stop after the claims in hand"

# Shows what there is to show; waits for a key for so many seconds.
Update = Callable[[float], None]


@contextmanager
def following(
    conninfo: str, name: str | None = None, *, on_quit: Callable[[], None], quit_words: str
) -> Iterator[Update]:
    """Show on standard error how pipeline `name`, or all, get on, whenever the result is called.

    A screen, and when it is left a line for each pipeline with the time that it all took. What is
    logged meanwhile, by processes that were started in the block too, is shown in it, and said
    when it is left. Without a terminal: a line a minute, and one for each event.
    """
    started = time.monotonic()
    shown = _on_screen if is_screen(sys.stderr) else _by_lines
    try:
        with shown(conninfo, name, on_quit, quit_words) as update:
            yield update
    finally:
        _finish(conninfo, name, time.monotonic() - started)


@contextmanager
def _on_screen(
    conninfo: str, name: str | None, on_quit: Callable[[], None], quit_words: str
) -> Iterator[Update]:
    with (
        Watcher(conninfo, name, seconds=SCREEN_SECONDS) as watcher,
        _behind() as (terminal_stream, said),
        Terminal(terminal_stream) as terminal,
    ):
        yield Screen(
            terminal,
            watcher,
            conninfo,
            on_quit=on_quit,
            quit_words=quit_words,
            no_worker=words.STARTING,
            said=said,
        ).update


@contextmanager
def _by_lines(
    conninfo: str, name: str | None, _on_quit: Callable[[], None], _quit_words: str
) -> Iterator[Update]:
    with Watcher(conninfo, name, seconds=LINES_SECONDS) as watcher:
        yield Lines(watcher, is_err=True, no_worker=words.STARTING).update


def _finish(conninfo: str, name: str | None, seconds: float) -> None:
    """Say how far it came, if the database is there to tell."""
    import psycopg

    from pgqueue_embed.db.session import connect
    from pgqueue_embed.errors import PgembedError
    from pgqueue_embed.monitoring.snapshot import read_snapshot

    with suppress(PgembedError, psycopg.Error), connect(conninfo) as connection:
        for line in ending(read_snapshot(connection, name), seconds=seconds):
            say(f"{line} · in {duration(seconds)}", err=True)


def watch(conninfo: str, name: str | None) -> None:
    """Show how everything stands on standard output until a person leaves."""
    with suppress(KeyboardInterrupt):
        if is_screen(sys.stdout):
            _watch_on_screen(conninfo, name)
        else:
            _watch_by_lines(conninfo, name)


def _watch_by_lines(conninfo: str, name: str | None) -> None:
    with Watcher(conninfo, name, seconds=LINES_SECONDS) as watcher:
        lines = Lines(watcher)
        while True:
            lines.update(0.2)


def _watch_on_screen(conninfo: str, name: str | None) -> None:
    left: list[bool] = []
    with (
        Watcher(conninfo, name, seconds=SCREEN_SECONDS) as watcher,
        Terminal(sys.stdout) as terminal,
    ):
        screen = Screen(
            terminal,
            watcher,
            conninfo,
            on_quit=lambda: left.append(True),
            quit_words="quit (workers go on)",
        )
        while not left:
            screen.update(0.2)
            if not terminal.has_keys:
                time.sleep(0.2)


@contextmanager
def _behind() -> Iterator[tuple[TextIO, Callable[[], Sequence[str]]]]:
    """Keep what is written to standard error, by whatever process, until the end of the block.

    Yields the terminal itself, and what returns the last lines that were written.
    """
    sys.stderr.flush()
    with os.fdopen(os.dup(2), "w") as terminal, tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield terminal, lambda: _last_lines(kept)
        finally:
            sys.stderr.flush()
            os.dup2(terminal.fileno(), 2)
            _copy(kept, 2)


def _last_lines(kept: BinaryIO) -> list[str]:
    length = os.fstat(kept.fileno()).st_size
    start = max(0, length - TAIL_BYTES)
    return os.pread(kept.fileno(), TAIL_BYTES, start).decode(errors="replace").splitlines()


def _copy(kept: BinaryIO, descriptor: int) -> None:
    kept.seek(0)
    with suppress(OSError):
        while part := kept.read(65536):
            while part:
                part = part[os.write(descriptor, part) :]


class Lines:
    """A line a minute on how each pipeline with work gets on, and a line for each event.

    What was said the minute before is not said again for an hour.
    """

    def __init__(
        self, watcher: Watcher, *, is_err: bool = False, no_worker: str = words.NO_WORKER
    ) -> None:
        self._watcher = watcher
        self._no_worker = no_worker
        self._is_err = is_err
        self._next = 0.0
        self._last_event_at: datetime | None = None
        self._said: list[str] = []
        self._say_again_at = 0.0
        self._began_at = time.monotonic()

    def update(self, wait_seconds: float = 0.0) -> None:
        """Say what is new, if it is time; waits for so long first."""
        time.sleep(wait_seconds)
        latest, trouble = self._watcher.latest, self._watcher.trouble
        if latest is not None and trouble is None:
            self._say_events(latest)
        if time.monotonic() < self._next or (latest is None and not self._is_hindered(trouble)):
            return
        self._next = time.monotonic() + minute_lines.LINE_SECONDS
        if trouble is not None:
            self._say([f"how it gets on is not known: {trouble}"])
        elif latest is not None:
            self._say(ending(latest, self._no_worker))

    def _is_hindered(self, trouble: str | None) -> bool:
        """Return whether the first look fails for longer than what is watched takes to begin."""
        return trouble is not None and time.monotonic() >= self._began_at + BEGINNING_SECONDS

    def _say(self, lines: list[str]) -> None:
        now = time.monotonic()
        if lines == self._said and now < self._say_again_at:
            return
        self._said, self._say_again_at = lines, now + UNCHANGED_SECONDS
        for line in lines:
            say(line, err=self._is_err)

    def _say_events(self, latest: Snapshot) -> None:
        since = self._last_event_at or latest.now
        for row in reversed(latest.events):
            if row["happened_at"] > since:
                say(f"{row['happened_at'].astimezone():%H:%M} {words.event(row)}", err=self._is_err)
        self._last_event_at = max([since, *(row["happened_at"] for row in latest.events)])
