"""The memory of a worker on one huge record, and on many large ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psutil

from benchmarks.bench import Bench
from benchmarks.corpora import maude
from benchmarks.database import drop_database, queued_database
from benchmarks.figures import Figure, Measured, Reach
from benchmarks.static_model import minilm_tokens
from pgqueue_embed.db.session import Connection, connect

PART = "memory"
LIMIT_MEGABYTES = 1_000.0
SAMPLE_SECONDS = 0.02
MEGABYTE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Resident megabytes of the worker process, and the seconds of the whole run."""

    at_rest: float
    highest: float
    seconds: float


def measure(bench: Bench) -> Iterator[Measured]:
    """Measure both kinds of source with a model whose own cost is small: 384-d token vectors."""
    text = "\n\n".join(maude().documents)
    huge = (text * (50 * MEGABYTE // len(text) + 1))[: 50 * MEGABYTE]
    sources = {
        "one record of 50 MB": [huge],
        "60 records of 1 MB": [f"{number} {text[:MEGABYTE]}" for number in range(60)],
        "one record of 5 MB of quotation marks": ['"' * (5 * MEGABYTE)],
        "one record of 8 million emoji": ["🙂" * (8 * MEGABYTE)],
    }
    for name, documents in sources.items():
        bench.say(name)
        yield _measure(bench, name, documents)


def _measure(bench: Bench, name: str, documents: Sequence[str]) -> Measured:
    peak = peak_of(bench, documents)
    above = peak.highest - peak.at_rest
    note = f"{peak.at_rest:.0f} MB with the model loaded; {peak.seconds:.0f} s in all"
    figure = Figure(
        part=PART, name="peak above rest", corpus=name, unit="MB", values=[above], note=note
    )
    reach = Reach(
        name=f"peak memory above the model ({name})",
        measured=above,
        target=LIMIT_MEGABYTES,
        unit="MB",
        at_most=True,
    )
    return Measured(figures=[figure], reaches=[reach])


def peak_of(bench: Bench, documents: Sequence[str]) -> Peak:
    """Return what a worker takes that embeds `documents` with a model of small cost."""
    conninfo = queued_database(bench.server, documents, str(minilm_tokens()))
    try:
        return _watched_run(conninfo)
    finally:
        drop_database(bench.server, conninfo)


def _watched_run(conninfo: str) -> Peak:
    """Drain by ``pgembed work`` and watch the process that its supervisor starts."""
    command = [sys.executable, "-m", "pgqueue_embed", "work", "--drain", "--log-level", "error"]
    environment = {**os.environ, "PGEMBED_DSN": conninfo}
    started = time.perf_counter()
    at_rest = highest = 0.0
    with (
        connect(conninfo) as connection,
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as supervisor,
    ):
        while supervisor.poll() is None:
            highest = max(highest, _children_megabytes(supervisor.pid))
            if not at_rest and _is_registered(connection):
                at_rest = highest
            time.sleep(SAMPLE_SECONDS)
        assert supervisor.returncode == 0, "the worker drained its queue"
        _assert_all_embedded(connection)
    return Peak(at_rest=at_rest, highest=highest, seconds=time.perf_counter() - started)


def _children_megabytes(pid: int) -> float:
    try:
        children = psutil.Process(pid).children()
        return float(sum(child.memory_info().rss for child in children) / MEGABYTE)
    except psutil.NoSuchProcess:
        return 0.0


def _is_registered(connection: Connection) -> bool:
    return connection.execute("select from pgembed.workers").fetchone() is not None


def _assert_all_embedded(connection: Connection) -> None:
    row = connection.execute("select done = total, dead from pgembed.progress").fetchone()
    assert row == (True, 0), f"every record is embedded, not {row}"
