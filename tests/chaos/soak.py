"""Random faults for as long as you like: `python -m tests.chaos.soak --seconds 600`.

The seed is printed; `--seed` runs the same plan of faults again (their timing is the machine's).
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from pgqueue_embed.db.migrate import migrate
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import MachineFault, PgembedError
from pgqueue_embed.lifecycle import alter as altering
from pgqueue_embed.lifecycle.alter import Changes, alter, catch_up
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.lifecycle.sync import start_capture
from pgqueue_embed.local_server import LocalServer
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.generations import successor_of
from pgqueue_embed.queue.dead_letters import retry
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.worker import supervisor
from tests.servers import temporary_server
from tests.support.conditions import wait_until
from tests.support.corpus import delete_records, make_source, set_text, texts
from tests.support.light import Supervised, light_workers
from tests.support.oracle import assert_converged
from tests.support.pipelines import REPORTS, make_pipeline, prepare_with_fake_model

WORKERS = 3
CALM_SECONDS = 180.0

# Inserted at once before a new generation is made: most of them wait for the old one still.
BACKLOG_RECORDS = 500


@dataclass
class Soak:
    """One run: the server, its workers, chance, and what has happened so far.

    With `sync`, changes are captured, and nothing is enqueued after the start.
    """

    server: LocalServer
    sync: bool
    workers: list[Supervised]
    records: int
    seed: int
    happened: Counter[str] = field(default_factory=Counter)
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def conninfo(self) -> str:
        """The connection string of the database."""
        return self.server.conninfo()


def soak(*, seconds: float, records: int, seed: int, folder: Path) -> Counter[str]:
    """Work under faults for `seconds`, then in peace until all is done; returns what happened.

    Fails unless every promise is kept in the end, and no record is given up on for good.
    """
    with temporary_server() as server:
        migrate(server.conninfo())
        with connect(server.conninfo()) as connection:
            make_source(connection, texts(records))
            pipeline = make_pipeline(connection)
            sync = seed % 2 == 0
            if sync:
                start_capture(connection, pipeline)
            enqueue(connection, pipeline, Selection())
        settings = {"drain": False, "concurrency": 2, "lease_seconds": 2, "batch_seconds": 0.01}
        with light_workers(server.conninfo(), folder, WORKERS, **settings) as workers:
            run = Soak(server, sync, workers, records, seed)
            _storm(run, seconds)
            _calm(run)
        return run.happened


def _storm(run: Soak, seconds: float) -> None:
    users = [threading.Thread(target=each, args=(run,), daemon=True) for each in (_use, _alter)]
    for user in users:
        user.start()
    chance = random.Random(f"{run.seed} faults")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(chance.uniform(0.1, 1.0))
        (fault,) = chance.choices(list(FAULTS), [weight for weight, _ in FAULTS.values()])
        FAULTS[fault][1](run, chance)
        run.happened[fault] += 1
        _replace_ended(run)
    run.over.set()
    for user in users:
        user.join(60)


def _use(run: Soak) -> None:
    """Change, add and delete records, and enqueue, as a user does who knows of no fault."""
    chance = random.Random(f"{run.seed} user")
    while not run.over.is_set():
        with suppress(psycopg.Error, PgembedError), connect(run.conninfo) as user:
            while not run.over.is_set():
                _change(run, user, chance)
                if not run.sync and chance.random() < 0.05:
                    enqueue(user, load_pipeline(user, "reports"), Selection())
                    run.happened["enqueued"] += 1
                time.sleep(0.02)


def _alter(run: Soak) -> None:
    """Make new generations and switch to them, with a backlog of the old ones."""
    chance = random.Random(f"{run.seed} generations")
    altering.prepare = prepare_with_fake_model
    altering.check_local_model = lambda _pipeline: None
    while not run.over.wait(chance.uniform(1.0, 10.0)):
        with suppress(psycopg.Error, PgembedError), connect(run.conninfo) as owner:
            _make_generation(run, owner, chance)
            switch(owner, load_pipeline(owner, "reports"), patience_seconds=20.0)
            run.happened["generations switched"] += 1


def _make_generation(run: Soak, owner: Connection, chance: random.Random) -> None:
    pipeline = load_pipeline(owner, "reports")
    if successor_of(owner, pipeline) is not None:
        return
    first = chance.randint(1, run.records)
    owner.execute(
        "insert into public.reports (id, body)"
        " select n, 'Report ' || n from generate_series(%s::int, %s) as n"
        " on conflict (id) do update set body = excluded.body || ', again'",
        (first, first + BACKLOG_RECORDS),
    )
    successor = alter(owner, pipeline, Changes(chunk_tokens=16 + 4 * chance.randint(1, 9)))
    if successor is not None and chance.random() < 0.8:
        catch_up(owner, pipeline, successor)


def _change(run: Soak, user: Connection, chance: random.Random) -> None:
    key = chance.randint(1, run.records + run.records // 10)
    if chance.random() < 0.2:
        delete_records(user, REPORTS, [key])
    else:
        set_text(user, REPORTS, key, chance.choice([*texts(50, chunks=2), None]))
    run.happened["changes of the source"] += 1


def _replace_ended(run: Soak) -> None:
    """Start workers again as launchd would: their machine seemed ill, or they found no database."""
    for number, worker in enumerate(run.workers):
        if not worker.thread.is_alive():
            reason = str(worker.error)
            is_ill = isinstance(worker.error, MachineFault)
            assert is_ill or "connect" in reason, worker.error or worker.ending
            run.workers[number] = worker.again()
            run.happened["left: machine fault" if is_ill else "left: no database at the start"] += 1


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


def _calm(run: Soak) -> None:
    """Let the workers finish, then ask the oracle; whoever was given up on gets another chance."""
    with connect(run.conninfo) as connection:
        pipeline = load_pipeline(connection, "reports")
        if not run.sync:
            enqueue(connection, pipeline, Selection())
        if successor_of(connection, pipeline) is not None:
            pipeline = switch(connection, pipeline, patience_seconds=CALM_SECONDS)
            run.happened["generations switched"] += 1
        _wait_until_done(run, connection)
        (run.happened["given up on, then retried"],) = connection.execute(
            "select count(*) from pgembed.dead_letters"
        ).fetchone()
        retry(connection, pipeline)
        _wait_until_done(run, connection)
        for worker in run.workers:
            worker.end()
        assert_converged(connection, "reports")
        figures = "select count(*), count(*) filter (where state = 'dead') from pgembed.records"
        run.happened["records checked"], dead = connection.execute(figures).fetchone()
        assert dead == 0


def _wait_until_done(run: Soak, connection: Connection) -> None:
    def is_done() -> bool:
        for worker in run.workers:
            worker.send(signal.SIGCONT)
        _replace_ended(run)
        return connection.execute("select count(*) from pgembed.work").fetchone() == (0,)

    wait_until(is_done, "everything is embedded", seconds=CALM_SECONDS)


def main() -> None:
    """Run as told on the command line, and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randint(1, 10**6))
    options = parser.parse_args()
    sys.stdout.write(f"seed {options.seed}\n")
    supervisor.restart_delay_seconds = lambda _crashes: 0.2
    with tempfile.TemporaryDirectory() as folder:
        happened = soak(**vars(options), folder=Path(folder))
    for what, count in sorted(happened.items()):
        sys.stdout.write(f"{what}: {count:,}\n")
    sys.stdout.write("every promise was kept\n")


if __name__ == "__main__":
    main()
