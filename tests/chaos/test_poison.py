"""Records that make the model raise, compute nonsense, die or hang: only they are given up on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import MachineFault
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.queue.work_items import BULK
from pgqueue_embed.worker import supervisor
from pgqueue_embed.worker.crashes import DEADLY_RECORDS
from tests.support.claims import count, queue_keys
from tests.support.corpus import make_source, texts
from tests.support.fakes import NOT_A_NUMBER, POISON
from tests.support.light import Supervised, light_workers
from tests.support.light_worker import EXITS, HANGS, OUT_OF_MEMORY
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.rows import one_row

GOOD = 1000
DEADLY = {EXITS, OUT_OF_MEMORY, HANGS}
ERRORS = {
    POISON: r"ValueError: the light model chokes on this text",
    NOT_A_NUMBER: r"NonFiniteVectors: the model gave no usable vector .*",
    EXITS: r"the worker process died \d times on this record",
    OUT_OF_MEMORY: r"the worker process died \d times on this record",
    HANGS: r"the worker process died \d times on this record",
}
WORKERS = 2

# A lease that no claim outlasts, however slow the machine is.
PATIENT: dict[str, Any] = {"lease_seconds": 60.0}

# A deadly record kills three times: in an ordinary claim, alone with its item, and by itself. Each
# time the others may run into it too, in the moment before the death is written down.
MOST_DEATHS = 3 * WORKERS * len(DEADLY)


def deadly_positions() -> dict[int, str]:
    """Spread the poison over the queue: each in an item of its own."""
    return {150 + 170 * number: word for number, word in enumerate(ERRORS)}


def test_five_kinds_of_poison_among_a_thousand_records_hurt_only_themselves(
    connection: Connection, conninfo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "restart_delay_seconds", lambda _crashes: 0.1)
    documents = texts(GOOD + len(ERRORS))
    poison = deadly_positions()
    for position, word in poison.items():
        documents[position - 1] = f"Report {position} says {word}."
    make_source(connection, documents)
    pipeline = make_pipeline(connection, max_attempts=2)
    enqueue(connection, pipeline, Selection())
    with light_workers(conninfo, tmp_path, WORKERS, concurrency=2) as running:
        endings = [worker.thread.join(150) or worker.ending for worker in running]
    assert endings == ["drained"] * WORKERS, [worker.error for worker in running]
    assert_converged(connection, "reports")
    letters = dict(connection.execute("select key, last_error from pgembed.dead_letters"))
    assert sorted(letters, key=int) == [str(position) for position in sorted(poison)]
    for position, word in poison.items():
        assert re.fullmatch(ERRORS[word], letters[str(position)])
    assert_good_records_were_never_charged(connection)
    assert 3 * len(DEADLY) <= deaths(running) <= MOST_DEATHS


def assert_good_records_were_never_charged(connection: Connection) -> None:
    embedded, dead, failed = one_row(
        connection, "select sum(embedded), sum(dead), sum(failed) from pgembed.batches"
    )
    # Two attempts at what raises and what is no number; one verdict on what kills.
    assert (embedded, dead, failed) == (GOOD, len(ERRORS), 2 * 2 + len(DEADLY))


def deaths(running: list[Supervised]) -> int:
    return sum(worker.log().count("worker started") - 1 for worker in running)


def test_two_deadly_records_alone_are_not_taken_for_a_machine_at_fault(
    connection: Connection, conninfo: str, tmp_path: Path, quick_restarts: None
) -> None:
    queue_deadly(connection, items=2)
    assert ending(conninfo, tmp_path) == "drained"
    letters = dict(connection.execute("select key, last_error from pgembed.dead_letters"))
    assert sorted(letters) == ["1", "2"]


def test_a_machine_that_kills_its_worker_whatever_it_embeds_stops_it(
    connection: Connection, conninfo: str, tmp_path: Path, quick_restarts: None
) -> None:
    queue_deadly(connection, items=5)
    error = ending(conninfo, tmp_path)
    assert isinstance(error, MachineFault)
    assert "died on 3 different sets of records with nothing embedded" in str(error)
    assert count(connection, "pgembed.dead_letters") == 0


def test_a_machine_that_kills_its_worker_is_stopped_where_it_has_claimed_all_that_waits(
    connection: Connection, conninfo: str, tmp_path: Path, quick_restarts: None
) -> None:
    """After two deaths all of it is suspect, and is taken apart record by record."""
    queue_deadly(connection, items=2, records=20)
    error = ending(conninfo, tmp_path, concurrency=4)
    assert isinstance(error, MachineFault)
    assert count(connection, "pgembed.dead_letters") < DEADLY_RECORDS


@pytest.fixture
def quick_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "restart_delay_seconds", lambda _crashes: 0.1)


def queue_deadly(connection: Connection, *, items: int, records: int = 1) -> None:
    """Queue so many items, of so many records each that kill who embeds them."""
    make_source(connection, [])
    pipeline = make_pipeline(connection)
    for number in range(1, items * records + 1):
        text = f"Report {number} says {EXITS}."
        connection.execute("insert into public.reports (id, body) values (%s, %s)", (number, text))
    for first in range(1, items * records + 1, records):
        queue_keys(connection, pipeline, *range(first, first + records), priority=BULK)


def ending(conninfo: str, folder: Path, *, concurrency: int = 1) -> str | BaseException | None:
    """Let one worker work until it ends, and return how."""
    with light_workers(conninfo, folder, concurrency=concurrency, **PATIENT) as [worker]:
        worker.thread.join(100)
    return worker.error or worker.ending
