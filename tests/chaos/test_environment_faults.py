"""Faults of the server or the tables are waited for or said, and charged to no record."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psycopg
import pytest

from pgqueue_embed.db.migrate import migrate
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.local_server import LocalServer
from pgqueue_embed.local_server.account import server_account
from pgqueue_embed.pipeline.catalog import resume_pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.worker import loop
from pgqueue_embed.worker.loop import Shared, run_loop
from tests.servers import make_server_folder, temporary_server
from tests.support.conditions import wait_until
from tests.support.corpus import make_source, texts
from tests.support.fakes import FakeDevice, FixedPipelines, fake_chunker
from tests.support.light import LightProcess, light_process, light_settings
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline, queue_all
from tests.support.rows import one_row, one_value
from tests.support.working import drain, open_session

RECORDS = 60


def wait_for_log(worker: LightProcess, text: str) -> None:
    wait_until(lambda: text in worker.log(), f"the worker says '{text}'")


def assert_nothing_was_charged(connection: Connection) -> None:
    assert_converged(connection, "reports")
    query = "select sum(embedded), sum(dead), sum(failed) from pgembed.batches"
    assert connection.execute(query).fetchone() == (RECORDS, 0, 0)


FAILING_TARGET = """
create function public.fail() returns trigger language plpgsql as $$
begin
    raise exception 'could not extend file: No space left on device' using errcode = '{}';
end $$;
create trigger fail before insert on public.reports_chunks
for each statement execute function public.fail()
"""


@pytest.mark.parametrize("errcode", ["disk_full", "out_of_memory", "admin_shutdown"])
def test_fault_of_the_server_at_the_write_is_waited_for(
    connection: Connection, conninfo: str, tmp_path: Path, errcode: str
) -> None:
    queue_all(connection, texts(RECORDS))
    connection.execute(FAILING_TARGET.format(errcode))
    with light_process(conninfo, tmp_path) as worker:
        wait_for_log(worker, "No space left on device")
        connection.execute("drop trigger fail on public.reports_chunks")
        assert worker.wait() == 0, worker.log()
    assert_nothing_was_charged(connection)


COLLIDING_TARGET = """
create sequence public.collisions;
create function public.collide() returns trigger language plpgsql as $$
begin
    perform nextval('public.collisions');
    raise serialization_failure;
end $$;
create trigger collide before insert on public.reports_chunks
for each statement execute function public.collide()
"""


def test_write_that_collides_is_tried_again_in_the_same_claim(
    connection: Connection, conninfo: str, tmp_path: Path
) -> None:
    queue_all(connection, texts(RECORDS))
    connection.execute(COLLIDING_TARGET)
    collisions = "select last_value from public.collisions"
    with light_process(conninfo, tmp_path) as worker:
        wait_until(lambda: one_value(connection, collisions) > 3, "writes have collided")
        connection.execute("drop trigger collide on public.reports_chunks")
        assert worker.wait() == 0, worker.log()
    assert "claim given back" not in worker.log()
    assert_nothing_was_charged(connection)


def test_worker_tries_less_and_less_often_while_every_write_fails(
    connection: Connection, conninfo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = queue_all(connection, texts(RECORDS))
    connection.execute(FAILING_TARGET.format("disk_full"))
    failures: list[int] = []

    def delay_seconds(count: int, *, jitter: float) -> float:
        del jitter
        failures.append(count)
        if len(failures) == 4:
            connection.execute("drop trigger fail on public.reports_chunks")
        return 0.01

    monkeypatch.setattr(loop, "reconnect_delay_seconds", delay_seconds)
    shared = Shared.of(
        conninfo,
        light_settings(),
        worker_id=0,
        device=FakeDevice(),
        served=FixedPipelines([pipeline], fake_chunker()),
    )
    run_loop(shared)
    assert failures == [0, 1, 2, 3]
    assert_nothing_was_charged(connection)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of four megabytes that a server can write to."""
    folder = make_server_folder()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0777", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mounting, capture_output=True).returncode != 0:
        shutil.rmtree(folder)
        pytest.skip("a small file system can be mounted by root only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def test_full_disk_of_the_server_is_waited_for(
    connection: Connection, conninfo: str, tmp_path: Path, small_disk: Path
) -> None:
    queue_all(connection, texts(RECORDS))
    space = small_disk / "space"
    space.mkdir()
    account = server_account(space)
    if account is not None:
        os.chown(space, account.uid, account.gid)
    connection.execute(f"create tablespace small location '{space}'")
    connection.execute("alter table public.reports_chunks set tablespace small")
    ballast = small_disk / "ballast"
    _fill(ballast)
    try:
        with light_process(conninfo, tmp_path) as worker:
            wait_for_log(worker, "No space left on device")
            ballast.unlink()
            assert worker.wait() == 0, worker.log()
        assert_nothing_was_charged(connection)
    finally:
        connection.execute("drop table public.reports_chunks")
        connection.execute("drop tablespace small")


def _fill(ballast: Path) -> None:
    """Write to a file until its disk is full."""
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_server_that_became_read_only_is_waited_for(
    connection: Connection, conninfo: str, tmp_path: Path
) -> None:
    queue_all(connection, texts(RECORDS))
    name = connection.info.dbname
    with light_process(conninfo, tmp_path, drain=False) as worker:
        wait_for_log(worker, "batch committed")
        connection.execute(f"alter database {name} set default_transaction_read_only = on")
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        wait_for_log(worker, "read-only transaction")
        connection.execute(f"alter database {name} reset default_transaction_read_only")
        drained = "select count(*) from pgembed.work"
        wait_until(lambda: connection.execute(drained).fetchone() == (0,), "all is done")
    connection.execute("delete from pgembed.attempts")
    assert_nothing_was_charged(connection)


def test_server_without_free_connections_is_waited_for(tmp_path: Path) -> None:
    with temporary_server(extra_settings={"max_connections": "8"}) as server:
        _work_while_connections_run_out(server, tmp_path)


def _work_while_connections_run_out(server: LocalServer, folder: Path) -> None:
    conninfo = server.conninfo()
    migrate(conninfo)
    with connect(conninfo) as connection:
        make_source(connection, texts(RECORDS))
        pipeline = make_pipeline(connection)
        with light_process(conninfo, folder, drain=False) as worker, ExitStack() as hogs:
            wait_for_log(worker, "worker started")

            def refused() -> bool:
                return "too many clients" in worker.log()

            # The worker gives connections back, too: take those as well.
            wait_until(lambda: _take_all(conninfo, hogs) or refused(), "the worker is refused")
            hogs.close()
            enqueue(connection, pipeline, Selection())
            drained = "select count(*) = 0 from pgembed.work"
            wait_until(lambda: connection.execute(drained).fetchone() == (True,), "all is done")
        assert_nothing_was_charged(connection)


def _take_all(conninfo: str, hogs: ExitStack) -> None:
    while True:
        try:
            hogs.enter_context(psycopg.connect(conninfo))
        except psycopg.OperationalError:
            return


@pytest.mark.parametrize(
    ("fault", "mending"),
    [
        (
            "alter table public.reports rename column body to text",
            "alter table public.reports rename column text to body",
        ),
        (
            "alter table public.reports_chunks rename to elsewhere",
            "alter table public.elsewhere rename to reports_chunks",
        ),
    ],
    ids=["source column", "target table"],
)
def test_worker_pauses_a_pipeline_whose_tables_are_gone_and_says_how_to_go_on(
    connection: Connection, conninfo: str, tmp_path: Path, fault: str, mending: str
) -> None:
    pipeline = queue_all(connection, texts(RECORDS))
    connection.execute(fault)
    with light_process(conninfo, tmp_path) as worker:
        assert worker.wait() == 0, worker.log()
    paused = "select state, state_reason from pgembed.pipelines"
    state, reason = one_row(connection, paused)
    assert state == "paused"
    assert "does not exist; " in reason
    assert reason.endswith("mend it and run: pgembed resume reports")
    connection.execute(mending)
    resume_pipeline(connection, pipeline)
    with open_session(conninfo, worker_id=0) as session:
        drain(session, pipeline)
    assert_nothing_was_charged(connection)
