"""Finds how many worker processes help on this machine, by adding one after the other.

A process cuts and writes with one core's worth of Python at a time, which is too slow for a large
GPU (docs/performance.md). Whether another one helps is not to be known but by trying.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import psycopg

from pgqueue_embed.db import applications
from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.session import BOOKKEEPING_SECONDS, connect
from pgqueue_embed.errors import PgembedError
from pgqueue_embed.log import get_logger
from pgqueue_embed.worker.settings import MOST_PROCESSES

# The rate is that of the last minute; claims have grown, and the device is warm, in the one before.
SETTLING_SECONDS = 120.0
POLL_SECONDS = 5.0

# Of the time of claims: a model that takes less leaves cores to others.
BUSY_SHARE = 0.5

# One more process holds the model once more, and a minute is not like the other.
WORTH = 1.1


class Growth:
    """A thread that says by `wanted` how many processes there should be, from one on.

    `worker_ids` returns those of the processes that are ready, each time that it is asked.
    """

    def __init__(self, conninfo: str, worker_ids: Callable[[], Sequence[int]]) -> None:
        self.wanted = 1
        self._conninfo = conninfo
        self._worker_ids = worker_ids
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="growth", daemon=True)

    def start(self) -> None:
        """Begin to measure."""
        self._thread.start()

    def stop(self) -> None:
        """Measure no more."""
        self._done.set()

    def give_up(self, processes: int) -> None:
        """Want so many from now on, since another one could not be had."""
        self.wanted = processes
        self._done.set()

    def _run(self) -> None:
        rates: list[float] = []
        while not self._done.is_set():
            try:
                rate = self._rate()
            except (PgembedError, psycopg.Error) as error:
                get_logger().debug("rate not read", reason=first_line(error))
                rate = None
            if rate is None:
                continue
            rates.append(rate)
            wanted = wanted_processes(rates)
            get_logger().info(
                "worker processes", chunks_per_second=round(rate), now=self.wanted, wanted=wanted
            )
            if wanted <= self.wanted:
                self.give_up(wanted)
            self.wanted = wanted

    def _rate(self) -> float | None:
        """Wait until all processes have worked for a while; returns their chunks a second.

        None if they have not: one of them began anew, there was nothing to do, or all is over.
        """
        began = time.monotonic()
        ids: Sequence[int] = ()
        while time.monotonic() < began + SETTLING_SECONDS:
            if self._done.wait(POLL_SECONDS):
                return None
            before, ids = ids, self._worker_ids()
            if len(ids) < self.wanted or (before and before != ids):
                began = time.monotonic()
        with connect(
            self._conninfo,
            application_name=applications.PROGRESS,
            patience_seconds=BOOKKEEPING_SECONDS,
        ) as connection:
            values = {"ids": list(ids), "least_share": BUSY_SHARE}
            (is_cpu_bound, rate, pending), *_ = connection.execute(RATE, values).fetchall()
        if is_cpu_bound and self.wanted == 1:
            self.give_up(1)  # its model computes on all cores
            return None
        return float(rate) if rate and pending else None


# A CPU is the bottleneck where its model takes most of the time; of one that costs next to nothing,
# such as a table of vectors, a process cuts and writes. Without anything pending at the end, there
# may have been too little to do before.
RATE = """
select
    exists (
        select from pgembed.worker_status where worker_id = any (%(ids)s) and device = 'cpu'
    ) and (
        select
            sum(embed_seconds) >= %(least_share)s
                * sum(read_seconds + chunk_seconds + embed_seconds + write_seconds)
        from pgembed.recent_history
        where worker_id = any (%(ids)s)
            and step > statement_timestamp() - interval '1 minute'
    ),
    (select sum(chunks_per_second) from pgembed.worker_status where worker_id = any (%(ids)s)),
    (select sum(pending) from pgembed.progress where state = 'active')
"""


def wanted_processes(rates: Sequence[float], *, most: int = MOST_PROCESSES) -> int:
    """Return how many processes there should be, after `rates` of one, two, three and so on.

    One more as long as the last has made all of them clearly faster; else one fewer.
    """
    now = len(rates)
    if now > 1 and rates[-1] < WORTH * rates[-2]:
        return now - 1
    return min(now + 1, most)
