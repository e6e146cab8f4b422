"""Everything at once: workers race, users change the source, back ends are killed.

Chance picks the interleaving; the oracle says at the end whether the promise was kept.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import sql

from pgqueue_embed.claim.size import ClaimSize
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import DatabaseUnavailable, LeaseLost
from pgqueue_embed.ledger.commits import roll_up
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.capture import CAPTURE
from tests.support.corpus import make_source, texts
from tests.support.fakes import NOT_A_NUMBER, POISON, FakeDevice
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.rows import one_value
from tests.support.working import WORKER_NAME, drain, open_session, work_once

SECONDS = 2.5
# On a busy machine it takes longer, until there are as many claims.
FEWEST_CLAIMS = 20
MOST_SECONDS = 60.0
PAUSE_SECONDS = 0.5
RECORDS = 120
WORKERS = 3


class World:
    """What the threads of one run share."""

    def __init__(self, conninfo: str, pipeline: Pipeline, seed: int) -> None:
        self.conninfo = conninfo
        self.pipeline = pipeline
        self.seed = seed
        self.claims = 0
        self.began = time.monotonic()

    def goes_on(self) -> bool:
        seconds = time.monotonic() - self.began
        return seconds < SECONDS or (self.claims <= FEWEST_CLAIMS and seconds < MOST_SECONDS)


def work(world: World, number: int) -> None:
    chance = random.Random(f"{world.seed} worker {number}")

    def dawdle() -> None:
        time.sleep(chance.random() * 0.01)

    while world.goes_on():
        try:
            with open_session(world.conninfo, worker_id=number) as session:
                while world.goes_on():
                    size = ClaimSize(items=chance.randint(1, 5), limit_bytes=2000)
                    if work_once(session, world.pipeline, FakeDevice(during=dawdle), size=size):
                        world.claims += 1
                    else:
                        dawdle()
        except (LeaseLost, DatabaseUnavailable, psycopg.OperationalError):
            continue


def change_source(world: World, number: int) -> None:
    chance = random.Random(f"{world.seed} user {number}")
    documents = [*texts(9, chunks=2), None, "", POISON, f"{NOT_A_NUMBER} again"]
    with connect(world.conninfo) as user:
        while world.goes_on():
            with user.transaction():
                for _ in range(chance.randint(1, 3)):
                    change(user, chance, documents)
                if chance.random() < 0.1:
                    time.sleep(0.03)


def change(user: Connection, chance: random.Random, documents: list[str | None]) -> None:
    # In key order a user's transaction would deadlock with nobody; users do not care.
    key = chance.randint(1, RECORDS + 20)
    if chance.random() < 0.25:
        user.execute("delete from public.reports where id = %s", (key,))
        return
    user.execute(
        "insert into public.reports values (%s, %s)"
        " on conflict (id) do update set body = excluded.body",
        (key, chance.choice(documents)),
    )


def alter_source(world: World, number: int) -> None:
    with connect(world.conninfo) as user:
        user.execute("set lock_timeout = '2s'")
        for step in range(100):
            if not world.goes_on():
                return
            column = sql.Identifier(f"extra_{number}_{step}")
            user.execute(sql.SQL("alter table public.reports add column {} int").format(column))
            user.execute(sql.SQL("alter table public.reports drop column {}").format(column))
            enqueue(user, world.pipeline, Selection(everything=step % 4 == 0), slice_records=40)
            roll_up(user, world.pipeline.id)
            time.sleep(0.1)


def kill_backends(world: World, number: int) -> None:
    chance = random.Random(f"{world.seed} killer {number}")
    with connect(world.conninfo, application_name="killer") as killer:
        while world.goes_on():
            victims = killer.execute(
                "select pid from pg_stat_activity"
                " where datname = current_database() and application_name = %s",
                (WORKER_NAME,),
            ).fetchall()
            claims = world.claims
            if victims:
                killer.execute("select pg_terminate_backend(%s)", chance.choice(victims))
            time.sleep(0.08)
            # On a busy machine a claim takes longer than that, and none would ever end.
            until = time.monotonic() + PAUSE_SECONDS
            while world.claims == claims and time.monotonic() < until:
                time.sleep(0.01)


@pytest.mark.parametrize("seed", [1, 2])
def test_promise_is_kept_whatever_happens_at_once(
    connection: Connection, conninfo: str, seed: int
) -> None:
    make_source(connection, texts(RECORDS, chunks=2))
    pipeline = make_pipeline(connection, max_attempts=2)
    connection.execute(CAPTURE)
    enqueue(connection, pipeline, Selection())
    world = World(conninfo, pipeline, seed)
    roles: list[Callable[[World, int], None]] = [
        *[work] * WORKERS,
        change_source,
        alter_source,
        kill_backends,
    ]
    with ThreadPoolExecutor(len(roles)) as pool:
        running = [pool.submit(role, world, number) for number, role in enumerate(roles)]
    for each in running:
        each.result()
    attempted = one_value(connection, "select count(*) from pgembed.batches")
    assert attempted > FEWEST_CLAIMS
    enqueue(connection, pipeline, Selection())
    with open_session(conninfo) as session:
        drain(session, pipeline)
    connection.execute("delete from pgembed.attempts")
    assert_converged(connection, "reports")
