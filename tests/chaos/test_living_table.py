"""Writers and workers at once: in the end the vectors are those of the table."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.lifecycle.sync import queue_missed, start_capture
from tests.support.conditions import wait_until
from tests.support.corpus import make_source, texts
from tests.support.light import light_workers
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.rows import one_value
from tests.support.vectors import assert_vectors_are_of_their_texts

# So few records that writers and workers meet at each of them again and again.
SECONDS = 10
RECORDS = 500
WRITERS = 4
WORKERS = 3
LEVELS = ("read committed", "repeatable read", "serializable")
TEXTS = (*texts(40, chunks=2), None, "", "unchanged")

# Two writers get in each other's way, as they do anywhere; what they did is undone.
CLASHES = (
    psycopg.errors.UniqueViolation,
    psycopg.errors.SerializationFailure,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.LockNotAvailable,
)


def _keys(chance: random.Random, most: int = 20) -> list[int]:
    return [chance.randint(1, RECORDS * 2) for _ in range(chance.randint(1, most))]


def _insert(user: Connection, chance: random.Random) -> None:
    user.execute(
        "insert into public.reports (id, body) select key, %s from unnest(%s::bigint[]) as n (key)"
        " on conflict (id) do update set body = excluded.body",
        (chance.choice(TEXTS), list(set(_keys(chance, 300)))),
    )


def _update_text(user: Connection, chance: random.Random) -> None:
    values = (chance.choice(TEXTS), _keys(chance))
    user.execute("update public.reports set body = %s where id = any(%s)", values)


def _update_key(user: Connection, chance: random.Random) -> None:
    moved = "update public.reports set id = %s where id = %s"
    user.execute(moved, (chance.randint(1, RECORDS * 2), chance.randint(1, RECORDS * 2)))


def _update_condition(user: Connection, chance: random.Random) -> None:
    values = (chance.random() < 0.7, _keys(chance))
    user.execute("update public.reports set wanted = %s where id = any(%s)", values)


def _update_other(user: Connection, chance: random.Random) -> None:
    user.execute("update public.reports set other = other + 1 where id = any(%s)", (_keys(chance),))


def _delete(user: Connection, chance: random.Random) -> None:
    user.execute("delete from public.reports where id = any(%s)", (_keys(chance),))


def _truncate(user: Connection, chance: random.Random) -> None:
    del chance
    user.execute("truncate public.reports")


CHANGES: dict[Callable[[Connection, random.Random], None], int] = {
    _insert: 200,
    _update_text: 300,
    _update_key: 100,
    _update_condition: 100,
    _update_other: 100,
    _delete: 150,
    _truncate: 2,
}


def _write(conninfo: str, seed: str, happened: Counter[str], over: threading.Event) -> None:
    """Write in transactions of a few statements, every tenth of which is rolled back."""
    chance = random.Random(seed)
    with connect(conninfo) as user:
        user.execute("set lock_timeout = '2s'")
        while not over.is_set():
            with suppress(*CLASHES):
                happened[_transaction(user, chance)] += 1
            time.sleep(chance.uniform(0, 0.03))


def _transaction(user: Connection, chance: random.Random) -> str:
    undone = chance.random() < 0.1
    with user.transaction(force_rollback=undone):
        user.execute(f"set transaction isolation level {chance.choice(LEVELS)}")
        for _ in range(chance.randint(1, 4)):
            (change,) = chance.choices(list(CHANGES), list(CHANGES.values()))
            with user.transaction(force_rollback=chance.random() < 0.1):
                change(user, chance)
    return "rolled back" if undone else "committed"


@pytest.mark.timeout(300)
def test_vectors_are_those_of_the_table_after_it_was_written_to_all_the_time(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    """Nothing is enqueued once capture is on; `PGEMBED_SEED` repeats the writers' chance."""
    seed = os.environ.get("PGEMBED_SEED") or str(random.SystemRandom().randint(1, 10**6))
    print(f"seed {seed}: PGEMBED_SEED={seed}")  # noqa: T201 (shown when the test fails)
    make_source(connection, texts(RECORDS))
    connection.execute(
        "alter table public.reports add column wanted boolean not null default true,"
        " add column other integer not null default 0"
    )
    pipeline = make_pipeline(connection, where="wanted")
    start_capture(connection, pipeline)
    queue_missed(connection, pipeline)
    happened: Counter[str] = Counter()
    settings: dict[str, Any] = {
        "drain": False,
        "concurrency": 2,
        "lease_seconds": 5,
        "batch_seconds": 0.002,
    }
    with light_workers(conninfo, tmp_path, WORKERS, **settings) as workers:
        _storm(conninfo, seed, happened)
        is_done = "select not exists (select from pgembed.work)"
        wait_until(lambda: one_value(connection, is_done), "all is done", seconds=90)
        for worker in workers:
            worker.end()
    assert_converged(connection, "reports")
    assert_vectors_are_of_their_texts(connection)
    assert happened["committed"] > SECONDS, happened


def _storm(conninfo: str, seed: str, happened: Counter[str]) -> None:
    over = threading.Event()
    writers = [
        threading.Thread(target=_write, args=(conninfo, f"{seed} {number}", happened, over))
        for number in range(WRITERS)
    ]
    for writer in writers:
        writer.start()
    time.sleep(SECONDS)
    over.set()
    for writer in writers:
        writer.join(30)
