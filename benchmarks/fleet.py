"""Simulated Macs at work side by side, watched through the database for a while."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil

from benchmarks.cpu_time import process_seconds, server_seconds
from benchmarks.simulated_mac import DIMENSIONS
from pgqueue_embed.db.session import Connection, connect

__all__ = ["CLAIM_SECONDS", "DIMENSIONS", "RATE", "Scaled", "run_fleet"]

RATE = 125
CLAIM_SECONDS = 0.5
START_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """What a fleet did; `server_cores` and `client_cores` are processor seconds a second."""

    records_per_second: float
    chunks_per_second: float
    claims_per_second: float
    server_cores: float
    client_cores: float


def run_fleet(conninfo: str, count: int, window_seconds: float, server_pid: int | None) -> Scaled:
    """Let `count` simulated Macs work, and watch them once each of them has committed twice."""
    with _fleet(conninfo, count) as processes, connect(conninfo) as connection:
        _wait_for_commits(connection, processes)
        since = _now(connection)
        server, clients = server_seconds(server_pid), _client_seconds(processes)
        started = time.perf_counter()
        time.sleep(window_seconds)
        seconds = time.perf_counter() - started
        server = server_seconds(server_pid) - server
        clients = _client_seconds(processes) - clients
        records, chunks, claims = _rates(connection, since)
    return Scaled(
        records_per_second=records,
        chunks_per_second=chunks,
        claims_per_second=claims,
        server_cores=server / seconds,
        client_cores=clients / seconds,
    )


@contextmanager
def _fleet(conninfo: str, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    command = [sys.executable, "-m", "benchmarks.simulated_mac"]
    arguments = [conninfo, str(RATE), str(CLAIM_SECONDS)]
    processes = [subprocess.Popen([*command, *arguments]) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()


def _wait_for_commits(connection: Connection, processes: list[subprocess.Popen[bytes]]) -> None:
    query = """
        select count(*)
        from (select from pgembed.batches group by worker_id having count(*) >= 2) as ready
    """
    deadline = time.monotonic() + START_SECONDS
    while connection.execute(query).fetchone() != (len(processes),):
        ended = any(process.poll() is not None for process in processes)
        if ended or time.monotonic() > deadline:
            raise TimeoutError("the simulated Macs do not all start")
        time.sleep(0.1)


def _now(connection: Connection) -> Any:
    return connection.value("select clock_timestamp()")


# The slope of each worker's cumulative work over its commits: its loops commit in bunches, so
# that counting what lies between the first and the last commit would be off by one of them.
RATES = """
with commits as (
    select
        worker_id,
        extract(epoch from committed_at)::float8 as second,
        sum(records) over so_far as records,
        sum(chunks) over so_far as chunks,
        count(*) over so_far as claims
    from pgembed.batches
    where committed_at > %s
    window so_far as (partition by worker_id order by committed_at)
),
workers as (
    select
        regr_slope(records, second) as records,
        regr_slope(chunks, second) as chunks,
        regr_slope(claims, second) as claims
    from commits
    group by worker_id
)
select sum(records), sum(chunks), sum(claims)
from workers
"""


def _rates(connection: Connection, since: Any) -> tuple[float, float, float]:
    """Return records, chunks and claims a second, summed over the workers."""
    row = connection.execute(RATES, (since,)).fetchone()
    records, chunks, claims = row or (0, 0, 0)
    return float(records), float(chunks), float(claims)


def _client_seconds(processes: list[subprocess.Popen[bytes]]) -> float:
    return sum(process_seconds(psutil.Process(process.pid)) for process in processes)
