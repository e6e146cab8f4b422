"""Faults of machines and of the server, one after the other."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from contextlib import suppress

import psycopg

from pgqueue_embed.db.session import connect
from pgqueue_embed.errors import PgembedError
from tests.chaos.soak.state import Soak
from tests.support.conditions import wait_until


def strike(run: Soak, chance: random.Random) -> None:
    """Let one fault happen."""
    (fault,) = chance.choices(list(FAULTS), [weight for weight, _ in FAULTS.values()])
    FAULTS[fault][1](run, chance)
    run.happened[fault] += 1


def _kill(run: Soak, chance: random.Random) -> None:
    chance.choice(run.workers).send(signal.SIGKILL)


def _freeze(run: Soak, chance: random.Random) -> None:
    worker, seconds = chance.choice(run.workers), chance.uniform(0.1, 4.0)
    worker.send(signal.SIGSTOP)
    threading.Timer(seconds, worker.send, (signal.SIGCONT,)).start()


def _terminate(run: Soak, chance: random.Random, *, share: float = 0.3) -> None:
    with suppress(psycopg.Error, PgembedError), connect(run.conninfo) as killer:
        pids = killer.execute(
            "select pid from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        ).fetchall()
        for pid in pids:
            if chance.random() < share:
                killer.execute("select pg_terminate_backend(%s)", pid)


def _terminate_all(run: Soak, chance: random.Random) -> None:
    _terminate(run, chance, share=1.0)


def _restart(run: Soak, chance: random.Random) -> None:
    pid_file = run.server.data_folder / "postmaster.pid"
    pid = int(pid_file.read_text().splitlines()[0])
    os.kill(pid, chance.choice([signal.SIGINT, signal.SIGQUIT]))
    wait_until(lambda: not pid_file.exists(), "the server has stopped")
    run.server.start()


FAULTS: dict[str, tuple[int, Callable[[Soak, random.Random], None]]] = {
    "worker killed": (6, _kill),
    "worker frozen": (4, _freeze),
    "some back ends ended": (6, _terminate),
    "all back ends ended": (2, _terminate_all),
    "server stopped and started": (1, _restart),
}
