"""Records that make the model raise, compute nonsense, die or hang: only they are given up on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pgqueue_embed.db.session import Connection
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.worker import supervisor
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
