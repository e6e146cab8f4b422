"""The common ground of all parts of the benchmark: options, a server, corpora, a console."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from types import TracebackType

from rich.console import Console

from benchmarks.corpora import Corpus
from benchmarks.database import PRODUCTION_SETTINGS
from benchmarks.figures import Measured
from benchmarks.options import Options
from benchmarks.packages import Missing
from pgqueue_embed.local_server import LocalServer
from tests.servers import temporary_server


class Bench:
    """One run of the benchmark; what it started ends with it."""

    def __init__(self, options: Options, console: Console) -> None:
        self.options = options
        self.sizes = options.sizes
        self.rounds = options.rounds
        self.console = console
        self.measured = Measured()
        self._stack = ExitStack()

    def __enter__(self) -> Bench:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    @cached_property
    def server(self) -> LocalServer:
        """PostgreSQL on the cores of this machine, durable as in production."""
        self.say("starting PostgreSQL")
        return self._stack.enter_context(
            temporary_server(self.options.postgresql, PRODUCTION_SETTINGS)
        )

    def say(self, what: str) -> None:
        """Tell the person at the screen what happens now."""
        self.console.print(f"[dim]… {what}[/]", highlight=False, soft_wrap=True)

    def on_run(self, number: int, name: str) -> None:
        """Say which variant runs, for `figures.interleaved`."""
        self.say(f"round {number + 1} of {self.rounds}: {name}")

    def corpus(self, load: Callable[[], Corpus]) -> Corpus | None:
        """Return a corpus, or None with a note that its rows are skipped."""
        try:
            return load()
        except Missing as missing:
            self.measured.notes.append(f"skipped: {missing}")
            return None
