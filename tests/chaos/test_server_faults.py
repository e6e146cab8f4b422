"""The database goes away under busy workers, in every way: they wait, come back and finish."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgqueue_embed.db.migrate import migrate
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.local_server import LocalServer
from tests.servers import temporary_server
from tests.support.conditions import wait_until
from tests.support.corpus import texts
from tests.support.light import Supervised, light_workers
from tests.support.oracle import assert_converged
from tests.support.pipelines import queue_all
from tests.support.rows import one_value

RECORDS = 1500


@pytest.fixture(scope="module")
def own_server() -> Iterator[LocalServer]:
    """A server that a test may stop; its database is migrated."""
    with temporary_server() as server:
        migrate(server.conninfo())
        yield server


def forget_everything(connection: Connection) -> None:
    connection.execute(
        "drop table if exists public.reports, public.reports_chunks;"
        "truncate pgembed.pipelines, pgembed.work, pgembed.records, pgembed.batches,"
        " pgembed.scans, pgembed.workers, pgembed.attempts restart identity"
    )


def embedded(connection: Connection) -> int:
    count = one_value(connection, "select sum(embedded) from pgembed.batches")
    return count or 0


def wait_for_workers(conninfo: str, count: int) -> None:
    """Return once `count` worker processes hold claims."""
    query = "select count(distinct pid) from pgembed.in_flight"
    with connect(conninfo) as observer:
        busy = lambda: observer.execute(query).fetchone() == (count,)  # noqa: E731
        wait_until(busy, f"{count} workers are busy")


def wait_for_progress(conninfo: str, beyond: int) -> int:
    """Return how many records are embedded, once it is more than `beyond`."""
    with connect(conninfo) as observer:
        wait_until(lambda: embedded(observer) > beyond, f"more than {beyond} records are embedded")
        return embedded(observer)


def stop_server(server: LocalServer, number: signal.Signals) -> None:
    """Shut a server down as pg_ctl does: SIGINT is fast, SIGQUIT immediate (as a crash)."""
    pid_file = server.data_folder / "postmaster.pid"
    os.kill(int(pid_file.read_text().splitlines()[0]), number)
    wait_until(lambda: not pid_file.exists(), "the server has stopped")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["fast", "immediate"])
def test_workers_outlive_a_stop_of_the_server_and_finish(
    own_server: LocalServer, tmp_path: Path, how: signal.Signals
) -> None:
    conninfo = own_server.conninfo()
    with connect(conninfo) as connection:
        forget_everything(connection)
        queue_all(connection, texts(RECORDS))
    with light_workers(conninfo, tmp_path, 3, batch_seconds=0.03, lease_seconds=5) as running:
        wait_for_workers(conninfo, 3)
        before = wait_for_progress(conninfo, 0)
        stop_server(own_server, how)
        own_server.start()
        assert wait_for_progress(conninfo, before) < RECORDS
        assert [worker.wait() for worker in running] == ["drained"] * 3
        assert all(gave_back(worker) for worker in running)
    with connect(conninfo) as connection:
        assert_converged(connection, "reports")
        workers = "select count(*), count(*) filter (where stop_reason = 'drained')"
        assert connection.execute(f"{workers} from pgembed.workers").fetchone() == (3, 3)


def gave_back(worker: Supervised) -> bool:
    return "claim given back" in worker.log()


def end_all_back_ends(connection: Connection) -> int:
    """End every other session of the database at once; returns how many there were."""
    return connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    ).rowcount


def test_ending_all_back_ends_at_once_makes_no_record_suspect(
    connection: Connection, conninfo: str, tmp_path: Path
) -> None:
    queue_all(connection, texts(RECORDS))
    with light_workers(conninfo, tmp_path, 2, batch_seconds=0.02, lease_seconds=5) as running:
        wait_for_workers(conninfo, 2)
        for _ in range(3):
            reached = wait_for_progress(conninfo, embedded(connection))
            assert reached < RECORDS
            assert end_all_back_ends(connection) >= 2
        assert [worker.wait() for worker in running] == ["drained"] * 2
    assert_converged(connection, "reports")
    assert_nobody_was_suspected(connection, running)


def assert_nobody_was_suspected(connection: Connection, running: list[Supervised]) -> None:
    assert not any("suspect" in worker.log() for worker in running)
    assert connection.execute("select sum(failed) from pgembed.batches").fetchone() == (0,)


def test_crash_after_a_lost_connection_counts_as_one_death(
    connection: Connection, conninfo: str, tmp_path: Path
) -> None:
    queue_all(connection, texts(40))
    with light_workers(conninfo, tmp_path, 1, batch_seconds=0.3, lease_seconds=5) as [worker]:
        wait_for_workers(conninfo, 1)
        assert end_all_back_ends(connection) >= 2
        wait_for_workers(conninfo, 1)
        assert attempts(connection) == in_flight(connection)
        assert worker.send(signal.SIGKILL)
        deaths = "select max(deaths) from pgembed.work where alone"
        wait_until(lambda: connection.execute(deaths).fetchone() != (None,), "a suspect")
        assert connection.execute(deaths).fetchone() == (1,)
        assert worker.wait() == "drained"
    assert_converged(connection, "reports")


def attempts(connection: Connection) -> list[int]:
    return [id_ for (id_,) in connection.execute("select work_id from pgembed.attempts order by 1")]


def in_flight(connection: Connection) -> list[int]:
    query = "select work_id from pgembed.in_flight order by 1"
    return [work_id for (work_id,) in connection.execute(query)]
