"""The progress of a build, looked up beside it, and the end of its phase."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psycopg

from pgqueue_embed.db import applications
from pgqueue_embed.db.session import connect
from pgqueue_embed.errors import PgembedError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search.index_build import BuildProgress, read_build_progress


class PhasePace:
    """How fast a phase goes; that of the last one tells nothing of the next."""

    def __init__(self) -> None:
        self._phase: tuple[str, int] | None = None
        self._begun = (0.0, 0)

    def seconds_left(self, found: BuildProgress, now: float) -> float | None:
        """Return in how long the phase ends at the pace since it was first seen; None at first."""
        phase = (found.phase, found.part)
        if phase != self._phase:
            self._phase, self._begun = phase, (now, found.done)
        then, done_then = self._begun
        done = found.done - done_then
        if not found.total or done <= 0 or now <= then:
            return None
        return (found.total - found.done) * (now - then) / done


Show = Callable[[BuildProgress, float | None], None]


@contextmanager
def watched(
    conninfo: str, pipeline: Pipeline, show: Show, *, every_seconds: float
) -> Iterator[None]:
    """Call `show` in a thread of its own while something builds on the pipeline's target.

    It gets how far the build is, and in how many seconds its phase ends, if that can be told.
    """
    finished = threading.Event()
    arguments = (conninfo, pipeline, show, every_seconds, finished)
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
    show: Show,
    every_seconds: float,
    finished: threading.Event,
) -> None:
    pace = PhasePace()
    # It is for the eye: the build goes on without it.
    with (
        suppress(psycopg.Error, PgembedError),
        connect(conninfo, application_name=applications.INDEX_PROGRESS) as connection,
    ):
        while not finished.wait(every_seconds):
            found = read_build_progress(connection, pipeline)
            if found is not None:
                show(found, pace.seconds_left(found, time.monotonic()))
