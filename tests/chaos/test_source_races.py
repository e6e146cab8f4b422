"""The user changes the source while workers embed it: nothing stale, nothing lost, nobody waits."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pgqueue_embed.claim import process
from pgqueue_embed.claim.size import ClaimSize
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.claims import Claim, finish_items, is_drained
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.queue.work_items import Handling, add_items
from tests.support.capture import CAPTURE
from tests.support.conditions import wait_until
from tests.support.corpus import delete_records, make_source, set_text, texts
from tests.support.light import light_workers
from tests.support.oracle import assert_converged
from tests.support.pipelines import REPORTS, make_pipeline
from tests.support.rows import one_value
from tests.support.working import drain, open_session, work_once

RECORDS = 60
WRITERS = 8
WORKERS = 4
CHANGES = 100


def just_before_commit(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Let `action` happen once, when a claim has re-checked its records but not yet committed."""

    def finish(connection: Connection, claim: Claim) -> None:
        monkeypatch.undo()
        action()
        finish_items(connection, claim)

    monkeypatch.setattr(process, "finish_items", finish)


@pytest.mark.parametrize("embedded_before", [False, True])
def test_enqueue_finds_a_change_that_a_claim_in_flight_has_not_seen(
    connection: Connection,
    conninfo: str,
    monkeypatch: pytest.MonkeyPatch,
    embedded_before: bool,
) -> None:
    make_source(connection, texts(5))
    pipeline = make_pipeline(connection)
    enqueue(connection, pipeline, Selection())
    queued: list[int] = []

    def change_and_enqueue() -> None:
        set_text(connection, REPORTS, 3, "A newer text.")
        queued.append(enqueue(connection, pipeline, Selection()))

    with open_session(conninfo) as session:
        if embedded_before:
            drain(session, pipeline)
            set_text(connection, REPORTS, 3, "A new text.")
            enqueue(connection, pipeline, Selection())
        just_before_commit(monkeypatch, change_and_enqueue)
        work_once(session, pipeline)
        assert queued != [0]
        total = connection.execute("select total from pgembed.progress").fetchone()
        assert total == (5,)
        drain(session, pipeline)
    assert_converged(connection, "reports")


def test_enqueue_finds_a_text_that_came_back_while_a_claim_writes_another(
    connection: Connection, conninfo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_source(connection, ["First text."])
    pipeline = make_pipeline(connection)
    enqueue(connection, pipeline, Selection())

    def change_back_and_enqueue() -> None:
        set_text(connection, REPORTS, 1, "First text.")
        enqueue(connection, pipeline, Selection())

    with open_session(conninfo) as session:
        drain(session, pipeline)
        set_text(connection, REPORTS, 1, "Second text.")
        enqueue(connection, pipeline, Selection())
        just_before_commit(monkeypatch, change_back_and_enqueue)
        drain(session, pipeline)
    assert_converged(connection, "reports")


def test_enqueue_takes_the_keys_of_a_claim_that_was_rolled_back_for_pending(
    connection: Connection, conninfo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_source(connection, texts(5))
    pipeline = make_pipeline(connection)
    enqueue(connection, pipeline, Selection())

    class Crash(BaseException):
        pass

    def crash(_connection: Connection, _ids: list[int]) -> None:
        raise Crash

    monkeypatch.setattr(process, "delete_attempts", crash)
    monkeypatch.setattr(process, "finish_items", crash)
    with open_session(conninfo) as session:
        with pytest.raises(Crash):
            work_once(session, pipeline)
        monkeypatch.undo()
        assert connection.execute("select count(*) from pgembed.attempts").fetchone() == (1,)
        assert enqueue(connection, pipeline, Selection()) == 0
        drain(session, pipeline)
    assert_converged(connection, "reports")


@pytest.mark.parametrize("embedded_before", [False, True])
def test_enqueue_finds_a_record_that_is_deleted_while_a_claim_writes_it(
    connection: Connection,
    conninfo: str,
    monkeypatch: pytest.MonkeyPatch,
    embedded_before: bool,
) -> None:
    make_source(connection, texts(5))
    pipeline = make_pipeline(connection)
    enqueue(connection, pipeline, Selection())

    def delete_and_enqueue() -> None:
        delete_records(connection, REPORTS, [3])
        enqueue(connection, pipeline, Selection())

    with open_session(conninfo) as session:
        if embedded_before:
            drain(session, pipeline)
            set_text(connection, REPORTS, 3, "A new text.")
            add_items(connection, pipeline.id, ["3"], Handling(priority=0, known=True))
        just_before_commit(monkeypatch, delete_and_enqueue)
        drain(session, pipeline)
    assert_converged(connection, "reports")


@pytest.mark.parametrize("captured", [True, False], ids=["captured", "found by enqueue"])
def test_eight_writers_beside_four_workers_leave_nothing_stale(
    connection: Connection, conninfo: str, captured: bool
) -> None:
    make_source(connection, texts(RECORDS))
    pipeline = make_pipeline(connection)
    if captured:
        connection.execute(CAPTURE)
    enqueue(connection, pipeline, Selection())
    race = Race(conninfo, pipeline)
    with ThreadPoolExecutor(WRITERS + WORKERS) as pool:
        workers = [pool.submit(race.work, number) for number in range(WORKERS)]
        writers = [pool.submit(race.write, number) for number in range(WRITERS)]
        while not all(writer.done() for writer in writers):
            enqueue(connection, pipeline, Selection())
        for writer in writers:
            writer.result()
        # Whatever is in flight at this moment, this one scan must find every change.
        if not captured:
            enqueue(connection, pipeline, Selection())
        wait_until(lambda: is_drained(connection, [pipeline.id]), "the queue is empty")
        race.over.set()
        for worker in workers:
            worker.result()
    assert_converged(connection, "reports")


class Race:
    """Threads that write to one source, and threads that embed it."""

    def __init__(self, conninfo: str, pipeline: Pipeline) -> None:
        self.conninfo = conninfo
        self.pipeline = pipeline
        self.over = threading.Event()

    def write(self, number: int) -> None:
        """Change, add and delete records."""
        chance = random.Random(number)
        with connect(self.conninfo) as user:
            for step in range(CHANGES):
                key = chance.randint(1, RECORDS + 20)
                if chance.random() < 0.25:
                    delete_records(user, REPORTS, [key])
                else:
                    set_text(user, REPORTS, key, f"Writer {number} wrote this at step {step}.")

    def work(self, number: int) -> None:
        """Claim as long as the race lasts."""
        size = ClaimSize(items=2, limit_bytes=1 << 20)
        with open_session(self.conninfo, worker_id=number) as session:
            while not self.over.is_set():
                if work_once(session, self.pipeline, size=size) is None:
                    self.over.wait(0.01)


def test_ddl_on_the_source_takes_less_than_a_second_while_workers_embed(
    connection: Connection, conninfo: str, tmp_path: Path
) -> None:
    make_source(connection, texts(1500))
    pipeline = make_pipeline(connection)
    enqueue(connection, pipeline, Selection())
    slowest = 0.0
    with light_workers(conninfo, tmp_path, 2, concurrency=2, batch_seconds=0.02) as running:
        wait_until(lambda: is_in_flight(connection), "the workers are busy")
        for number in range(10):
            started = time.monotonic()
            connection.execute(f"alter table public.reports add column extra_{number} int")
            slowest = max(slowest, time.monotonic() - started)
        assert is_in_flight(connection) or not is_drained(connection, [pipeline.id])
        assert [worker.wait() for worker in running] == ["drained"] * 2
    assert slowest < 1
    assert_converged(connection, "reports")


def is_in_flight(connection: Connection) -> bool:
    count = one_value(connection, "select count(*) from pgembed.in_flight")
    return count > 0
