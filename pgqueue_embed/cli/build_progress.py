"""Progress of the build of an index, looked up beside it: for `index` and `alter --switch`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgqueue_embed.pipeline.pipeline import Pipeline
    from pgqueue_embed.vector_search.index_build import BuildProgress

POLL_SECONDS = 0.5


@contextmanager
def watched_build(
    conninfo: str, pipeline: Pipeline, show: Callable[[BuildProgress], None]
) -> Iterator[None]:
    """Call `show` in a thread of its own while something builds an index on the target table.

    Where that is no terminal's, a line a minute says it on standard error.
    """
    finished = threading.Event()
    arguments = (conninfo, pipeline, show, finished)
    watcher = threading.Thread(target=_watch, args=arguments, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join()


def _watch(
    conninfo: str,
    pipeline: Pipeline,
    show: Callable[[BuildProgress], None],
    finished: threading.Event,
) -> None:
    import psycopg

    from pgqueue_embed.cli.minute_lines import MinuteLines
    from pgqueue_embed.db import applications
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.errors import PgembedError
    from pgqueue_embed.vector_search.index_build import read_progress

    lines = MinuteLines()

    # It is for the eye: the build goes on without it.
    with (
        suppress(psycopg.Error, PgembedError),
        connect(conninfo, application_name=applications.INDEX_PROGRESS) as connection,
    ):
        while not finished.wait(POLL_SECONDS):
            found = read_progress(connection, pipeline)
            if found is not None:
                lines.say(f"{sentence(found)}{share(found)}")
                show(found)


def share(found: BuildProgress) -> str:
    """Return how much of the phase is done, to stand behind its name, if it says so."""
    return f": {100 * found.done // found.total} %" if found.total else ""


def sentence(found: BuildProgress) -> str:
    """Return what the build does now."""
    part = f"part {found.part} of {found.parts}: " if found.parts > 1 else ""
    if found.waits_for_pid is not None:
        return f"{part}{found.phase} (process {found.waits_for_pid})"
    phase = found.phase.removeprefix("building index: ").removeprefix("index validation: ")
    return part + phase
