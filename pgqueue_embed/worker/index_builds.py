"""Builds the indexes that pipelines declare, beside the claims, once their queues have drained."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

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
from pgqueue_embed.vector_search.index import declared, lacks_declared, plan
from pgqueue_embed.vector_search.index_build import BuildInProgress, build_index
from pgqueue_embed.worker.loop import Shared

LOOK_SECONDS = 10.0

# What could not be built is tried again after so long: somebody may have given the right.
AGAIN_SECONDS = 600.0


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
            if self._shared.settings.drain or self._shared.shutdown.asked.wait(LOOK_SECONDS):
                return

    def _build_all(self) -> None:
        if not any(declared(each.spec) for each in self._shared.served.pipelines()):
            return
        with (
            connect(self._shared.conninfo, application_name=applications.INDEX) as connection,
            self._shared.shutdown.interruptible(connection),
        ):
            for pipeline in self._due(connection):
                self._build(connection, pipeline)

    def _due(self, connection: Connection) -> Iterator[Pipeline]:
        for pipeline in self._shared.served.pipelines():
            if (
                declared(pipeline.spec) is not None
                and self._again_at.get(pipeline.id, 0.0) <= time.monotonic()
                and is_drained(connection, [pipeline.id])
                and not is_scanning(connection, pipeline)
                # A switch builds for the next generation what the present one has.
                and not is_next(connection, pipeline)
                and lacks_declared(connection, pipeline)
            ):
                yield pipeline

    def _build(self, connection: Connection, pipeline: Pipeline) -> None:
        options = declared(pipeline.spec)
        log = get_logger(pipeline=pipeline.name)
        started = time.monotonic()
        try:
            if options is not None:
                planned = plan(connection, pipeline, options)
                log.info(
                    "index begun",
                    method=planned.method,
                    quantize=planned.quantize,
                    vectors=planned.rows,
                    megabytes=planned.memory_megabytes,
                    needed_megabytes=planned.needed_megabytes,
                )
                name = build_index(
                    connection,
                    pipeline,
                    planned,
                    on_warning=lambda text: log.warning("index", warning=text),
                )
                log.info("index built", index=name, seconds=round(time.monotonic() - started, 1))
        except BuildInProgress:
            log.debug("index is built by another")
        except PgembedError as error:
            self._again_at[pipeline.id] = time.monotonic() + AGAIN_SECONDS
            if not self._shared.shutdown.at_once.is_set():
                log.warning("index not built", reason=first_line(error))
