"""`pgembed serve` under 32 clients, against its model and the library alone, in batches of 32."""

from __future__ import annotations

import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil

from benchmarks.bench import Bench
from benchmarks.ceiling import load_library
from benchmarks.corpora import maude
from benchmarks.database import drop_database, make_pipeline, new_database
from benchmarks.figures import Figure, Measured, Reach, interleaved, percentile, ratio
from benchmarks.search_part import fill
from pgqueue_embed.db import applications
from pgqueue_embed.db.session import connect
from pgqueue_embed.embedding import AS_ITS_FILES_SAY, DeviceThread, resolve_model
from pgqueue_embed.embedding.query_model import QueryModel
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL
from pgqueue_embed.search_server.encoders import open_model
from pgqueue_embed.vector_search.index import plan
from pgqueue_embed.vector_search.index_build import build_index
from pgqueue_embed.vector_search.index_plan import IndexOptions
from tests.support.corpus import make_source

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PART = "serve"
CLIENTS = 32
WORDS = 8
DIMENSIONS = 384
WANTED = 0.8

ALONE = "the model alone, batches of 32"
BY_LIBRARY = "SentenceTransformer.encode, batches of 32"

# Those of a server have processors of their own, as a rule.
THE_CLIENTS = "clients"
DOORS: dict[str, tuple[str, dict[str, Any], str]] = {
    "POST /v1/embeddings": (
        "/v1/embeddings",
        {"model": "reports", "encoding_format": "base64"},
        "input",
    ),
    "POST /search": ("/search", {"pipeline": "reports", "limit": 5}, "query"),
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """What some seconds of one variant gave; `processor_ms` are of each program, a query."""

    rate: float
    processor_ms: dict[str, float]
    seconds: list[float]
    errors: list[str]


def measure(bench: Bench) -> Iterator[Measured]:
    """Ask for the vectors of queries, and for searches by an index."""
    queries = _queries()
    with ExitStack() as stack:
        conninfo = new_database(bench.server)
        stack.callback(drop_database, bench.server, conninfo)
        bench.say(f"{bench.sizes.searched_rows:,} vectors of {DIMENSIONS} dimensions, indexed")
        with connect(conninfo) as connection:
            make_source(connection, [])
            pipeline = make_pipeline(connection, DEFAULT_MODEL)
            fill(connection, pipeline, bench.sizes.searched_rows, DIMENSIONS)
            build_index(connection, pipeline, plan(connection, pipeline, IndexOptions()))
        server = stack.enter_context(_server(conninfo))
        device = DeviceThread(
            partial(open_model, resolve_model(DEFAULT_MODEL), AS_ITS_FILES_SAY, "cpu")
        )
        stack.callback(device.close)
        runs: dict[str, Callable[[], Run]] = {
            ALONE: partial(_alone, device, queries),
            BY_LIBRARY: partial(_by_library, load_library(), queries),
        }
        for name, door in DOORS.items():
            runs[name] = partial(_asked, server, door, queries)
        for each in runs.values():
            each()
        yield _measured(bench, interleaved(bench.rounds, runs, on_run=bench.on_run))


def _measured(bench: Bench, outcomes: dict[str, list[Run]]) -> Measured:
    alone, library = ([run.rate for run in outcomes[name]] for name in (ALONE, BY_LIBRARY))
    measured = Measured()
    for name, runs in outcomes.items():
        rates = [run.rate for run in runs]
        share, of_library = ratio(rates, alone), ratio(rates, library)
        own = ratio([*map(_own_ms, outcomes[ALONE])], [*map(_own_ms, runs)])
        measured.figures.append(
            Figure(
                part=PART,
                name=name,
                corpus=f"{CLIENTS} clients, {bench.sizes.searched_rows:,} x {DIMENSIONS}",
                unit="queries/s",
                values=rates,
                note=f"{share:.2f} of the model alone, {own:.2f} by processor time without that of"
                f" clients; {of_library:.2f} of encode; {_processor(runs)}; {_latency(runs)}",
            )
        )
        if name in DOORS:
            measured.reaches += [
                Reach(name=f"{name} against the model alone", measured=share, target=WANTED),
                Reach(name=f"{name} against encode", measured=of_library, target=WANTED),
            ]
            errors = [error for run in runs for error in run.errors]
            measured.notes += [f"{name}: {error}" for error in errors]
    return measured


def _own_ms(run: Run) -> float:
    """Return the processor time of a query, but for that of its client."""
    return sum(ms for program, ms in run.processor_ms.items() if program != THE_CLIENTS)


def _processor(runs: list[Run]) -> str:
    medians = {
        program: statistics.median(run.processor_ms[program] for run in runs)
        for program in runs[0].processor_ms
    }
    parts = ", ".join(f"{program} {found:.1f}" for program, found in medians.items())
    return f"ms of processor time: {parts}"


def _latency(runs: list[Run]) -> str:
    seconds = [each for run in runs for each in run.seconds]
    if not seconds:
        return "no latency"
    p50, p95 = (1000 * percentile(seconds, percent) for percent in (50, 95))
    errors = sum(len(run.errors) for run in runs)
    return f"p50 {p50:,.0f} ms, p95 {p95:,.0f} ms, {errors} errors"


def _queries() -> Iterator[list[str]]:
    """Yield lists of queries, no two of which are the same."""
    words = re.findall(r"[A-Za-z]{3,}", "\n".join(maude().documents[:2_000]))
    starts = itertools.count(step=3)
    while True:
        yield [" ".join(_slice(words, next(starts))) for _ in range(1_024)]


def _slice(words: list[str], start: int) -> list[str]:
    return [words[(start + each) % len(words)] for each in range(WORDS)]


def _alone(device: DeviceThread[QueryModel], queries: Iterator[list[str]]) -> Run:
    return _in_batches(device.embed, [device.model.chunk(query) for query in next(queries)])


def _by_library(library: SentenceTransformer, queries: Iterator[list[str]]) -> Run:
    def encode(batch: Sequence[str]) -> object:
        return library.encode(batch, batch_size=CLIENTS, show_progress_bar=False)

    return _in_batches(encode, next(queries))


def _in_batches(compute: Callable[[Sequence[Any]], object], queries: Sequence[Any]) -> Run:
    started, worked = time.perf_counter(), time.process_time()
    for first in range(0, len(queries), CLIENTS):
        compute(queries[first : first + CLIENTS])
    took, worked = time.perf_counter() - started, time.process_time() - worked
    processor_ms = {"the model": 1000 * worked / len(queries)}
    return Run(rate=len(queries) / took, processor_ms=processor_ms, seconds=[], errors=[])


def _asked(
    server: _Server, door: tuple[str, dict[str, Any], str], queries: Iterator[list[str]]
) -> Run:
    path, body, field = door
    place = urlsplit(server.url)
    asked = {
        "host": place.hostname,
        "port": place.port,
        "path": path,
        "body": body,
        "field": field,
        "queries": next(queries),
        "clients": CLIENTS,
    }
    before = server.processor_seconds()
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.serve_clients"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(ran.stdout)
    answers = len(found["seconds"])
    worked = {
        **{name: each - before.get(name, 0) for name, each in server.processor_seconds().items()},
        THE_CLIENTS: found["processor_seconds"],
    }
    return Run(
        rate=answers / found["wall_seconds"],
        processor_ms={name: 1000 * each / answers for name, each in worked.items()},
        seconds=found["seconds"],
        errors=found["errors"],
    )


@dataclass(frozen=True)
class _Server:
    """A running `pgembed serve`."""

    url: str
    process: psutil.Process
    conninfo: str

    def processor_seconds(self) -> dict[str, float]:
        """Return the processor time that it and its sessions in PostgreSQL have taken."""
        query = "select pid from pg_stat_activity where application_name = %s"
        with connect(self.conninfo) as connection:
            sessions = connection.execute(query, (applications.SERVE,)).fetchall()
        of_sessions = sum(_seconds(psutil.Process(pid)) for (pid,) in sessions)
        return {"server": _seconds(self.process), "PostgreSQL": of_sessions}


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def _server(conninfo: str) -> Iterator[_Server]:
    """Run `pgembed serve`."""
    command = [sys.executable, "-m", "pgqueue_embed", "serve", "--port", "0"]
    environment = {**os.environ, "PGEMBED_DSN": conninfo}
    environment.pop("PGEMBED_API_KEY", None)
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.search(r"http://\S+?(?=;)", line)
        if found is None:
            raise RuntimeError(f"the server did not start: {line}")
        yield _Server(found[0], psutil.Process(server.pid), conninfo)
    finally:
        server.terminate()
        server.wait(30)
