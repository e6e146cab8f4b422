"""Runs of a worker, read from the history that it leaves in pgembed.batches."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from pgqueue_embed.db.session import connect

STAGES = ("read", "chunk", "embed", "write")
RUN_SECONDS = 1_800


@dataclass(frozen=True, kw_only=True)
class Run:
    """One drained queue.

    `steady_seconds` last from the start of the first claim to the last commit; `wall_seconds`
    include the start of the process and the loading of the model. `stages` are sums over all
    claims, which overlap where several are in work. `late_rate` is chunks a second, spread over the
    time in which each claim was embedded, from four tenths of the time to the start of the last
    claim: every worker has started, claims have grown, and all have something to do.
    """

    records: int
    chunks: int
    cache_hits: int
    claims: int
    steady_seconds: float
    stages: dict[str, float]
    late_rate: float = 0.0
    wall_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Chunks written a second, start-up left out."""
        return self.chunks / self.steady_seconds

    @property
    def computed_rate(self) -> float:
        """Chunks computed a second: those that the cache had are left out."""
        return (self.chunks - self.cache_hits) / self.steady_seconds

    @property
    def record_rate(self) -> float:
        """Records committed a second, start-up left out."""
        return self.records / self.steady_seconds


# The stages of a claim follow each other, so that their sum before its commit is its start.
HISTORY = """
with claim as (
    select *,
        committed_at - make_interval(
            secs => read_seconds + chunk_seconds + embed_seconds + write_seconds) as started_at,
        committed_at - make_interval(secs => embed_seconds + write_seconds) as chunked_at,
        committed_at - make_interval(secs => write_seconds) as embedded_at
    from pgembed.batches
    where records > 0
), span as (
    select
        min(started_at) as began,
        max(committed_at) as ended,
        min(started_at) + 0.4 * (max(started_at) - min(started_at)) as late,
        max(started_at) as last_began
    from claim
)
select
    sum(records),
    sum(chunks),
    sum(cache_hits),
    count(*),
    extract(epoch from max(ended) - min(began)),
    coalesce(
        sum(chunks / nullif(embed_seconds, 0) * greatest(0, extract(epoch from
            least(embedded_at, last_began) - greatest(chunked_at, late))::double precision))
            / nullif(extract(epoch from max(last_began) - min(late))::double precision, 0),
        0),
    sum(read_seconds),
    sum(chunk_seconds),
    sum(embed_seconds),
    sum(write_seconds)
from claim, span
"""


def read_run(conninfo: str) -> Run:
    """Return what the history of a database says of the one run that made it."""
    with connect(conninfo) as connection:
        row = connection.execute(HISTORY).fetchone()
    assert row is not None, "an aggregate has a row"
    records, chunks, hits, claims, seconds, late_rate, *stages = row
    return Run(
        records=int(records),
        chunks=int(chunks),
        cache_hits=int(hits),
        claims=int(claims),
        steady_seconds=float(seconds),
        late_rate=float(late_rate),
        stages=dict(zip(STAGES, map(float, stages), strict=True)),
    )


def timed_run(conninfo: str, work: Callable[[], object]) -> Run:
    """Call `work`, which drains the queue of a database, and return the run."""
    started = time.perf_counter()
    work()
    wall_seconds = time.perf_counter() - started
    return replace(read_run(conninfo), wall_seconds=wall_seconds)


def run_command(
    conninfo: str, arguments: Sequence[str], settings: Mapping[str, str] | None = None
) -> Run:
    """Drain by ``pgembed work --drain ARGUMENTS`` in a process of its own.

    `settings` are added to its environment.
    """
    return run_commands(conninfo, [arguments], settings)


def run_commands(
    conninfo: str, commands: Sequence[Sequence[str]], settings: Mapping[str, str] | None = None
) -> Run:
    """Drain by several workers at once, each with its own arguments for `run_command`."""
    program = [sys.executable, "-m", "pgqueue_embed", "work", "--drain"]
    environment = {**os.environ, **(settings or {}), "PGEMBED_DSN": conninfo}

    def work() -> None:
        with ThreadPoolExecutor(len(commands)) as pool:
            list(pool.map(run, commands))

    def run(arguments: Sequence[str]) -> None:
        finished = subprocess.run(
            [*program, *arguments],
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
        )
        assert finished.returncode == 0, finished.stderr[-2_000:]

    return timed_run(conninfo, work)
