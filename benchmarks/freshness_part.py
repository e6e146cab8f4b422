"""The time from the commit of an INSERT to that of its vectors, with a worker that is idle."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.database import drop_database, new_database
from benchmarks.figures import Figure, Measured, Reach
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.queue.capture import install
from tests.support.conditions import wait_until
from tests.support.corpus import make_source, set_text, texts
from tests.support.light import light_workers
from tests.support.pipelines import REPORTS, make_pipeline

WANTED_SECONDS = 3.0

# Long enough for the worker's polls to be as rare as they get.
IDLE_SECONDS = (4.0, 6.5)


def measure(bench: Bench) -> Iterator[Measured]:
    """Insert one record after the other, at odd moments, beside one idle loop of a light worker."""
    conninfo = new_database(bench.server)
    with connect(conninfo) as connection, tempfile.TemporaryDirectory() as folder:
        make_source(connection)
        install(connection, make_pipeline(connection))
        with light_workers(conninfo, Path(folder), drain=False, lease_seconds=60.0):
            seconds = [
                _time_insert(connection, number, text)
                for number, text in enumerate(texts(bench.sizes.fresh_inserts))
            ]
    drop_database(bench.server, conninfo)
    figure = Figure(
        part="freshness",
        name="INSERT to vector",
        corpus=f"{len(seconds)} records",
        unit="s",
        values=seconds,
        note="the model's own time comes on top",
    )
    reach = Reach(
        name="INSERT to vector, the slowest",
        measured=max(seconds),
        target=WANTED_SECONDS,
        unit="s",
        at_most=True,
    )
    yield Measured(figures=[figure], reaches=[reach])


def _time_insert(connection: Connection, key: int, text: str) -> float:
    time.sleep(random.uniform(*IDLE_SECONDS))
    set_text(connection, REPORTS, key, text)
    committed = time.perf_counter()
    query = "select exists (select from public.reports_chunks where fulltext_id = %s)"
    wait_until(lambda: connection.execute(query, (key,)).fetchone() == (True,), "it has vectors")
    return time.perf_counter() - committed
