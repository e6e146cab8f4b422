"""The course of a soak: all is embedded once, a storm, and calm until the oracle can be asked."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pgqueue_embed.db.migrate import migrate
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.lifecycle.sync import start_capture
from pgqueue_embed.local_server import LocalServer
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.queue.dead_letters import retry
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.chaos.soak.faults import strike
from tests.chaos.soak.generations import finish, renew
from tests.chaos.soak.plan import Plan
from tests.chaos.soak.promises import (
    UNTOUCHED_RECORDS,
    WITH_VECTORS,
    check_always,
    check_in_the_end,
)
from tests.chaos.soak.rights import administer
from tests.chaos.soak.roles import EMBEDDER, GUEST, as_role, make_role
from tests.chaos.soak.state import CALM_SECONDS, Soak
from tests.chaos.soak.users import use
from tests.servers import temporary_server
from tests.support.conditions import wait_until
from tests.support.corpus import make_source, texts
from tests.support.light import Supervised, light_workers
from tests.support.pipelines import make_pipeline

# It hides nothing until row security is switched on for the table.
HIDES_HALF = "create policy half on public.reports using (id % 2 = 0)"

# They act at once, each at its own pace, until the storm is over.
PARTS: tuple[Callable[[Soak], None], ...] = (use, renew, administer)


def soak(plan: Plan, *, seconds: float, records: int, folder: Path) -> Counter[str]:
    """Work under faults for `seconds`, then in peace until all is done; returns what happened.

    Fails unless every promise is kept, and no record is given up on for good.
    """
    with temporary_server() as server:
        _set_up(server.conninfo(), plan, records)
        with _workers(server, plan, folder) as workers:
            run = Soak(plan, server, workers, records)
            untouched = f"({WITH_VECTORS}) = {UNTOUCHED_RECORDS}"
            run.wait_for(untouched, [UNTOUCHED_RECORDS], "the first records are embedded")
            _storm(run, seconds)
            _calm(run)
        return run.happened


def _set_up(conninfo: str, plan: Plan, records: int) -> None:
    migrate(conninfo)
    with connect(conninfo) as connection:
        make_source(connection, texts(records))
        pipeline = make_pipeline(connection, foreign_key=plan.foreign_key)
        for role in (EMBEDDER, GUEST):
            make_role(connection, role)
        connection.execute(HIDES_HALF)
        if plan.sync:
            start_capture(connection, pipeline)
        enqueue(connection, pipeline, Selection())


@contextmanager
def _workers(server: LocalServer, plan: Plan, folder: Path) -> Iterator[list[Supervised]]:
    settings: dict[str, Any] = {
        "drain": False,
        "concurrency": 2,
        "lease_seconds": 2,
        "batch_seconds": 0.01,
    }
    with ExitStack() as stack:
        workers: list[Supervised] = []
        for number, role in enumerate(plan.roles):
            own = folder / f"worker-{number}"
            own.mkdir()
            conninfo = as_role(server.conninfo(), role)
            workers += stack.enter_context(light_workers(conninfo, own, **settings))
        yield workers


def _storm(run: Soak, seconds: float) -> None:
    chance = run.plan.chance("faults")
    deadline = time.monotonic() + seconds
    with ThreadPoolExecutor(len(PARTS)) as threads:
        parts = [threads.submit(part, run) for part in PARTS]
        try:
            while time.monotonic() < deadline and not any(part.done() for part in parts):
                time.sleep(chance.uniform(0.1, 2.0))
                strike(run, chance)
                run.replace_ended()
                check_always(run)
        finally:
            run.over.set()
    for part in parts:
        part.result()


def _calm(run: Soak) -> None:
    """Let the workers finish, then ask the oracle; whoever was given up on gets another chance."""
    with connect(run.conninfo) as connection:
        if not run.plan.sync:
            enqueue(connection, load_pipeline(connection, "reports"), Selection())
        finish(run, connection)
        _wait_until_done(run, connection)
        run.happened["given up on, then retried"] = retry(
            connection, load_pipeline(connection, "reports")
        )
        _wait_until_done(run, connection)
        for worker in run.workers:
            worker.end()
        check_in_the_end(run, connection)


def _wait_until_done(run: Soak, connection: Connection) -> None:
    def is_done() -> bool:
        run.replace_ended()
        return connection.execute("select count(*) from pgembed.work").fetchone() == (0,)

    wait_until(is_done, "everything is embedded", seconds=CALM_SECONDS)
