"""Builds the indexes that pipelines declare, beside the claims, once their queues have drained.

And builds them anew where they have lost recall by what was written since.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

import psycopg

from pgqueue_embed.db import applications
from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import PgembedError
from pgqueue_embed.log import get_logger
from pgqueue_embed.pipeline.generations import is_next
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.claims import is_drained
from pgqueue_embed.queue.scan_cursor import is_scanning
from pgqueue_embed.vector_search.build_watch import watched
from pgqueue_embed.vector_search.index import (
    VectorIndex,
    count_vectors,
    declared,
    lacks_declared,
    plan,
)
from pgqueue_embed.vector_search.index_build import BuildInProgress, BuildProgress, build_index
from pgqueue_embed.vector_search.index_upkeep import check_index, index_to_check, note_checked
from pgqueue_embed.vector_search.lexical_index import build_lexical_index, has_lexical_index
from pgqueue_embed.worker.loop import Shared

POLL_SECONDS = 10.0

# What could not be built is tried again after so long: the right may have been given.
AGAIN_SECONDS = 600.0

# How often a build says how far it is.
SAY_SECONDS = 60.0


class IndexBuilds:
    """A thread that builds what is lacking: until the worker is to leave, or once for all.

    A build that is cut short leaves an index that is not valid, or nothing; the next worker begins
    anew. One process of all builds at a time, by an advisory lock.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._again_at: dict[int, float] = {}
        self._thread = threading.Thread(target=self._run, name="index builds", daemon=True)

    def start(self) -> None:
        """Begin; a worker that drains the queue does so when it has drained it."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it is at it still."""
        return self._thread.is_alive()

    def join(self, seconds: float) -> None:
        """Wait so long for its end."""
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            try:
                self._build_all()
            except (PgembedError, psycopg.Error) as error:
                get_logger().debug("no index built", reason=first_line(error))
            if self._shared.settings.drain or self._shared.shutdown.asked.wait(POLL_SECONDS):
                return

    def _build_all(self) -> None:
        if not any(map(_declares, self._shared.served.pipelines())):
            return
        with (
            connect(self._shared.conninfo, application_name=applications.INDEX) as connection,
            self._shared.shutdown.interruptible(connection),
        ):
            for pipeline in self._settled(connection):
                if lacks_declared(connection, pipeline):
                    self._once(pipeline, partial(self._build, connection, pipeline))
                elif (index := index_to_check(connection, pipeline)) is not None:
                    self._once(pipeline, partial(self._check, connection, pipeline, index))
                if _lacks_lexical(connection, pipeline):
                    self._once(pipeline, partial(self._build_lexical, connection, pipeline))

    def _settled(self, connection: Connection) -> Iterator[Pipeline]:
        """Yield those with a declared index of which all is embedded."""
        for pipeline in self._shared.served.pipelines():
            if (
                _declares(pipeline)
                and self._again_at.get(pipeline.id, 0.0) <= time.monotonic()
                and is_drained(connection, [pipeline.id])
                and not is_scanning(connection, pipeline)
                # A switch builds for the next generation what the present one has.
                and not is_next(connection, pipeline)
            ):
                yield pipeline

    def _once(self, pipeline: Pipeline, work: Callable[[], None]) -> None:
        """Do `work` on an index; what cannot be done is said, and tried again much later."""
        log = get_logger(pipeline=pipeline.name)
        try:
            work()
        except BuildInProgress:
            log.debug("index is built by another")
        except PgembedError as error:
            self._again_at[pipeline.id] = time.monotonic() + AGAIN_SECONDS
            if not self._shared.shutdown.at_once.is_set():
                log.warning("index not built", reason=first_line(error))

    def _build(self, connection: Connection, pipeline: Pipeline) -> None:
        options = declared(pipeline.spec)
        if options is None:
            return
        log = get_logger(pipeline=pipeline.name)
        started = time.monotonic()
        planned = plan(connection, pipeline, options)
        log.info(
            "index begun",
            method=planned.method,
            quantize=planned.quantize,
            vectors=planned.rows,
            megabytes=planned.memory_megabytes,
            needed_megabytes=planned.needed_megabytes,
        )
        with self._watched(pipeline):
            name = build_index(connection, pipeline, planned, on_warning=_warning(pipeline))
        note_checked(connection, pipeline)
        log.info("index built", index=name, seconds=_since(started))

    def _build_lexical(self, connection: Connection, pipeline: Pipeline) -> None:
        log = get_logger(pipeline=pipeline.name)
        started = time.monotonic()
        log.info("index begun", method="lexical")
        with self._watched(pipeline):
            name = build_lexical_index(connection, pipeline, on_warning=_warning(pipeline))
        log.info("index built", index=name, seconds=_since(started))

    def _check(self, connection: Connection, pipeline: Pipeline, index: VectorIndex) -> None:
        """Measure an index after mass changes, and build it anew if it finds too little."""
        log = get_logger(pipeline=pipeline.name, index=index.name)
        started = time.monotonic()
        fallen: list[float] = []

        def say_that_it_fell(recall: float, wanted: float) -> None:
            fallen.append(recall)
            log.info("index rebuild begun", recall=round(recall, 3), wanted=round(wanted, 3))

        with self._watched(pipeline):
            recall = check_index(
                connection,
                pipeline,
                index,
                on_fallen=say_that_it_fell,
                on_warning=_warning(pipeline),
            )
        done = "index rebuilt" if fallen else "index measured"
        log.info(done, recall=recall and round(recall, 3), seconds=_since(started))

    def _watched(self, pipeline: Pipeline) -> AbstractContextManager[None]:
        """Log how far a build is, in a line a minute."""
        log = get_logger(pipeline=pipeline.name)

        def show(found: BuildProgress, seconds_left: float | None) -> None:
            log.info(
                "index goes on",
                phase=found.phase,
                part=found.part,
                parts=found.parts,
                percent=100 * found.done // found.total if found.total else None,
                phase_ends_in_seconds=None if seconds_left is None else round(seconds_left),
            )

        return watched(self._shared.conninfo, pipeline, show, every_seconds=SAY_SECONDS)


def _warning(pipeline: Pipeline) -> Callable[[str], None]:
    return lambda text: get_logger(pipeline=pipeline.name).warning("index", warning=text)


def _since(started: float) -> float:
    return round(time.monotonic() - started, 1)


def _declares(pipeline: Pipeline) -> bool:
    return declared(pipeline.spec) is not None or pipeline.spec.lexical


def _lacks_lexical(connection: Connection, pipeline: Pipeline) -> bool:
    is_there = not pipeline.spec.lexical or has_lexical_index(connection, pipeline)
    return not is_there and count_vectors(connection, pipeline) > 0
