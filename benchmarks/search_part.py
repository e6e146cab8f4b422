"""Indexes of smaller vectors; exact search, with vectors here and there; calls of a program."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import psutil
import psycopg
from numpy.typing import NDArray

from benchmarks import quantized
from benchmarks.bench import Bench
from benchmarks.corpora import maude
from benchmarks.database import drop_database, fake_identity, make_pipeline, new_database
from benchmarks.figures import Figure, Measured, interleaved
from pgqueue_embed import Database, Pipeline
from pgqueue_embed import search as call
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.db.vectors import VectorCodec
from pgqueue_embed.pipeline.pipeline import Pipeline as Settings
from pgqueue_embed.target import ChunkRows, target_of
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support.corpus import make_source

PART = "search"
DIMENSIONS = (384, 768, 1_024)
TEXT_CHARACTERS = 500
STATEMENT_ROWS = 1_000


def measure(bench: Bench) -> Iterator[Measured]:
    """Search a table as `create` makes it, and one with PostgreSQL's usual limit of a row."""
    yield from quantized.measure(bench)
    for dimensions in DIMENSIONS:
        bench.say(f"{bench.sizes.searched_rows:,} vectors of {dimensions} dimensions")
        yield _measure(bench, dimensions)
    bench.say("searches from a program, of ten vectors")
    yield _measure_calls(bench)


# More searches than one, since each takes some milliseconds.
CALLS = 50


def _measure_calls(bench: Bench) -> Measured:
    """Search by a vector, so that what is left is what a search takes beside model and scan."""
    with ExitStack() as stack:
        conninfo = new_database(bench.server)
        stack.callback(drop_database, bench.server, conninfo)
        connection = stack.enter_context(connect(conninfo))
        make_source(connection, [])
        fill(connection, make_pipeline(connection, fake_identity(384)), 10, 384)
        database = Database(conninfo)
        stack.callback(database.close)
        kept = database.pipeline("reports")
        own = stack.enter_context(psycopg.connect(conninfo, autocommit=True))
        vector = _direction(1, 384)

        def over_new_session() -> object:
            opened = Database(conninfo)
            try:
                return call(Pipeline(opened.conninfo, "reports"), vector=vector)
            finally:
                opened.close()

        ways: dict[str, Callable[[], object]] = {
            "a kept session": lambda: call(kept, vector=vector),
            "the program's connection": lambda: call(kept, vector=vector, connection=own),
            "a new session each": over_new_session,
        }
        runs = {name: partial(_calls, connection, way) for name, way in ways.items()}
        for run in runs.values():
            run()
        outcomes = interleaved(bench.rounds, runs, on_run=bench.on_run)
    return Measured(
        figures=[
            Figure(
                part=PART,
                name=f"search from a program, over {name}",
                corpus="10 x 384",
                unit="ms/search",
                values=[each.wall_ms for each in found],
                note=f"by a vector: no model, next to no scan; {_processor_note(found)}",
            )
            for name, found in outcomes.items()
        ]
    )


@dataclass(frozen=True, kw_only=True)
class _Calls:
    """What a search took on average, by the clock and of the processors' time."""

    wall_ms: float
    program_ms: float
    server_ms: float


def _calls(watching: Connection, way: Callable[[], object]) -> _Calls:
    served, started, worked = _served(watching), time.perf_counter(), time.process_time()
    for _ in range(CALLS):
        way()
    wall, worked = time.perf_counter() - started, time.process_time() - worked
    found = (wall, worked, _served(watching) - served)
    wall_ms, program_ms, server_ms = (1e3 * each / CALLS for each in found)
    return _Calls(wall_ms=wall_ms, program_ms=program_ms, server_ms=server_ms)


def _served(watching: Connection) -> float:
    """Return the processor time that PostgreSQL's open sessions in the database have taken."""
    query = "select pid from pg_stat_activity where datname = current_database() and pid <> %s"
    pids = watching.execute(query, (watching.info.backend_pid,)).fetchall()
    served = 0.0
    for (pid,) in pids:
        with suppress(psutil.NoSuchProcess):  # its session has just ended
            times = psutil.Process(pid).cpu_times()
            served += float(times.user + times.system)
    return served


def _processor_note(found: Sequence[_Calls]) -> str:
    program = statistics.median(each.program_ms for each in found)
    server = statistics.median(each.server_ms for each in found)
    return f"ms of processor time: program {program:.1f}, PostgreSQL's open sessions {server:.1f}"


def _measure(bench: Bench, dimensions: int) -> Measured:
    with ExitStack() as stack:
        searches: dict[str, Callable[[], float]] = {}
        sizes: dict[str, float] = {}
        for name in ("as created", "usual limit"):
            conninfo = new_database(bench.server)
            stack.callback(drop_database, bench.server, conninfo)
            connection = stack.enter_context(connect(conninfo))
            make_source(connection, [])
            pipeline = make_pipeline(connection, fake_identity(dimensions))
            if name == "usual limit":
                connection.execute("alter table public.reports_vectors reset (toast_tuple_target)")
            fill(connection, pipeline, bench.sizes.searched_rows, dimensions)
            sizes[name] = _row_bytes(connection, bench.sizes.searched_rows)
            searches[name] = partial(_search, connection, pipeline, dimensions)
        for each in searches.values():
            each()
        outcomes = interleaved(bench.rounds, searches, on_run=bench.on_run)
    return Measured(
        figures=[
            Figure(
                part=PART,
                name=f"exact search, {name}",
                corpus=f"{bench.sizes.searched_rows:,} x {dimensions}",
                unit="µs/row",
                values=[1e6 * seconds / bench.sizes.searched_rows for seconds in found],
                note=f"{sizes[name]:,.0f} bytes a row",
            )
            for name, found in outcomes.items()
        ]
    )


def fill(connection: Connection, pipeline: Settings, rows: int, dimensions: int) -> None:
    """Fill the pipeline's target with chunks of 500 characters, in directions at random."""
    text = "\n\n".join(maude().documents)
    codec = VectorCodec(connection)
    for first in range(0, rows, STATEMENT_ROWS):
        count = min(STATEMENT_ROWS, rows - first)
        starts = [number % 1_000 * TEXT_CHARACTERS for number in range(first, first + count)]
        chunks = ChunkRows(
            keys=[str(number) for number in range(first, first + count)],
            document_hashes=[b""] * count,
            chunk_indexes=[0] * count,
            texts=[text[start : start + TEXT_CHARACTERS] for start in starts],
            start_chars=[0] * count,
            end_chars=[TEXT_CHARACTERS] * count,
            tokens=[TEXT_CHARACTERS // 4] * count,
            vectors=np.stack([_direction(number, dimensions) for number in range(count)]),
        )
        target_of(pipeline).replace(connection, codec, chunks.keys, [chunks])
    connection.execute("vacuum analyze public.reports_vectors")


def _direction(seed: int, dimensions: int) -> NDArray[np.float32]:
    vector = np.random.default_rng(seed).standard_normal(dimensions).astype(np.float32)
    unit: NDArray[np.float32] = vector / np.linalg.norm(vector)
    return unit


def _row_bytes(connection: Connection, rows: int) -> float:
    query = "select pg_table_size('public.reports_vectors')"
    return float(connection.value(query)) / rows


def _search(connection: Connection, pipeline: Settings, dimensions: int) -> float:
    query = _direction(1, dimensions)
    started = time.perf_counter()
    search(connection, pipeline, query, SearchRequest(limit=10, threshold=-1.0))
    return time.perf_counter() - started
