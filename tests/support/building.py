"""Builds of indexes, and a writer for whom they wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg import sql

from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search.index_build import read_build_progress


@contextmanager
def someone_writes(conninfo: str, pipeline: Pipeline) -> Iterator[None]:
    """Hold a transaction open that has written to the target: a build waits for its end."""
    with connect(conninfo) as writer, writer.transaction():
        lock = sql.SQL("lock table {} in row exclusive mode")
        writer.execute(lock.format(pipeline.target.identifier))
        yield


def build_waits(connection: Connection, pipeline: Pipeline) -> bool:
    """Return whether a build has made its index and waits for somebody who writes."""
    progress = read_build_progress(connection, pipeline)
    return progress is not None and progress.waits_for_pid is not None
