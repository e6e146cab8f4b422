"""Keeping a pipeline true to its source: capture, for its next generation too, and a scan."""

from __future__ import annotations

from collections.abc import Callable

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.lifecycle.alter import catch_up
from pgqueue_embed.pipeline.generations import successor_of, with_successors
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue import capture
from pgqueue_embed.queue.enqueue import Selection, Slice, enqueue


def start_capture(connection: Connection, pipeline: Pipeline) -> list[Table]:
    """Capture changes from now on; returns the tables that lacked a trigger.

    What changed before is found by `queue_missed`, or by the enqueue of a new pipeline. Raises as
    `capture.install` does.
    """
    tables: list[Table] = []
    for each in with_successors(connection, [pipeline.name]):
        tables += capture.install(connection, each)
    return list(dict.fromkeys(tables))


def queue_missed(
    connection: Connection,
    pipeline: Pipeline,
    *,
    on_slice: Callable[[Slice], None] = lambda _: None,
) -> int:
    """Queue what changed while nothing captured it; returns how many records.

    To be called once capture is on, so that nothing falls between the two.
    """
    queued = enqueue(connection, pipeline, Selection(), on_slice=on_slice)
    successor = successor_of(connection, pipeline)
    if successor is not None:
        queued += catch_up(connection, pipeline, successor, on_slice=on_slice)
    return queued


def stop_capture(connection: Connection, pipeline: Pipeline) -> bool:
    """Leave nothing of capture on the source; returns whether there was anything."""
    removed = [
        capture.remove(connection, each) for each in with_successors(connection, [pipeline.name])
    ]
    return any(removed)
