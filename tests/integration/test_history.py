"""The history of commits: folding old rows together never changes a sum."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.ledger.commits import Commit, record_commit, roll_up
from tests.support.corpus import make_source
from tests.support.pipelines import make_pipeline
from tests.support.rows import one_value

COUNTS = ("records", "embedded", "empty", "dead", "unchanged", "failed", "chunks", "tokens")
SUMS = f"select {', '.join(f'sum({name})' for name in COUNTS)} from pgembed.batches"


@pytest.fixture(autouse=True)
def _pipeline(connection: Connection) -> None:
    make_source(connection)
    assert make_pipeline(connection).id == 1


def add_batches(connection: Connection, rows: int, *, age: str, pipeline_id: int = 1) -> None:
    connection.execute(
        "insert into pgembed.batches (pipeline_id, worker_id, committed_at, records, embedded,"
        " empty, dead, unchanged, failed, chunks, tokens, embed_seconds)"
        " select %s, n %% 3, clock_timestamp() - %s::interval, n, n - 1, 1 - n %% 3, n %% 2, 3, 1,"
        " 2 * n, 100 * n, 0.5 from generate_series(1, %s) as n",
        (pipeline_id, age, rows),
    )


def rows_of(connection: Connection, pipeline_id: int = 1) -> int:
    query = "select count(*) from pgembed.batches where pipeline_id = %s"
    return one_value(connection, query, (pipeline_id,))


def test_batch_is_recorded_with_every_field(connection: Connection) -> None:
    fields = {name: number for number, name in enumerate(vars(Commit()), start=1)}
    record_commit(connection, 1, 7, Commit(**fields))
    columns = ", ".join(fields)
    row = connection.execute(f"select worker_id, {columns} from pgembed.batches").fetchone()
    assert row == (7, *fields.values())


def test_old_rows_are_folded_into_one_with_the_same_sums(connection: Connection) -> None:
    add_batches(connection, 600, age="2 hours")
    add_batches(connection, 20, age="1 minute")
    before = connection.execute(SUMS).fetchone()
    assert roll_up(connection, 1)
    assert connection.execute(SUMS).fetchone() == before
    assert rows_of(connection) == 21


def test_progress_is_the_same_after_a_roll_up(connection: Connection) -> None:
    add_batches(connection, 600, age="2 hours")
    shown = "select total, done, dead, percent, last_commit_at from pgembed.progress"
    before = connection.execute(shown).fetchone()
    roll_up(connection, 1)
    assert connection.execute(shown).fetchone() == before


def test_few_old_rows_are_left_alone(connection: Connection) -> None:
    add_batches(connection, 500, age="2 hours")
    add_batches(connection, 600, age="50 minutes")
    assert not roll_up(connection, 1)
    assert rows_of(connection) == 1100


def test_nothing_old_makes_no_row(connection: Connection) -> None:
    assert not roll_up(connection, 1)
    assert rows_of(connection) == 0


def test_rows_of_other_pipelines_are_left_alone(connection: Connection) -> None:
    add_batches(connection, 600, age="2 hours")
    add_batches(connection, 600, age="2 hours", pipeline_id=2)
    roll_up(connection, 1)
    assert (rows_of(connection, 1), rows_of(connection, 2)) == (1, 600)


def test_roll_up_folds_an_earlier_one_again(connection: Connection) -> None:
    for _ in range(3):
        add_batches(connection, 600, age="2 hours")
        roll_up(connection, 1)
    assert rows_of(connection) == 1
    expected = 3 * sum(range(1, 601))
    for table in ("batches", "minutes"):
        query = f"select sum(records) from pgembed.{table}"
        assert one_value(connection, query) == expected, table


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_roll_ups_at_once_lose_and_double_nothing(
    connection: Connection, conninfo: str, isolation: str
) -> None:
    add_batches(connection, 3000, age="2 hours")
    before = connection.execute(SUMS).fetchone()
    start = threading.Barrier(4)

    def fold(_: int) -> None:
        with connect(conninfo) as session:
            session.execute(f"set default_transaction_isolation = '{isolation}'")
            start.wait(10)
            roll_up(session, 1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fold, range(4)))
    assert connection.execute(SUMS).fetchone() == before
    assert rows_of(connection) < 3000
