"""The network loses what it can lose, and the claim of a worker nobody hears of is freed."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import LeaseLost
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.worker import supervisor
from tests.support.conditions import wait_until, wait_until_gone
from tests.support.corpus import make_source, texts
from tests.support.fakes import FakeDevice
from tests.support.fault_points import Fault
from tests.support.light import Supervised, light_process, light_workers
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.proxy import Link, Proxy, proxied
from tests.support.rows import one_value
from tests.support.working import drain, open_session, work_once

RECORDS = 30


@pytest.fixture
def pipeline(connection: Connection) -> Pipeline:
    """A pipeline with everything queued."""
    make_source(connection, texts(RECORDS))
    made = make_pipeline(connection)
    enqueue(connection, made, Selection())
    return made


def lose_commit(proxy: Proxy, *, is_applied: bool) -> None:
    """Cut the first connection that commits, before the server hears of it or after it replied."""

    def on_request(link: Link, data: bytes) -> None:
        # Not the beginning, which is READ COMMITTED.
        if b"COMMIT\0" not in data:
            return
        proxy.on_request = lambda _link, _data: None
        link.swallow_replies = True
        if is_applied:
            proxy.on_reply = lambda replying, _data: link.close() if replying is link else None
        else:
            link.swallow_requests = True
            link.close()

    proxy.on_request = on_request


@pytest.mark.parametrize("is_applied", [True, False], ids=["applied", "never arrived"])
def test_connection_lost_inside_commit_is_safe_whatever_became_of_it(
    connection: Connection, conninfo: str, pipeline: Pipeline, is_applied: bool
) -> None:
    with proxied(conninfo) as (proxy, through), open_session(through) as session:
        lose_commit(proxy, is_applied=is_applied)
        with pytest.raises(LeaseLost):
            work_once(session, pipeline)
    written = one_value(connection, "select count(*) from pgembed.batches")
    assert written == is_applied
    with open_session(conninfo) as session:
        drain(session, pipeline)
    assert_converged(connection, "reports")
    embedded = connection.execute("select sum(embedded) from pgembed.batches").fetchone()
    assert embedded == (RECORDS,)


def test_claim_of_a_worker_cut_off_is_freed_within_the_lease(
    connection: Connection, conninfo: str, pipeline: Pipeline
) -> None:
    with proxied(conninfo) as (proxy, through), ThreadPoolExecutor(1) as pool:
        session = open_session(through, lease_seconds=1)
        with session as cut_off, open_session(conninfo) as other:
            device = FakeDevice(hold=threading.Event())
            running = pool.submit(work_once, cut_off, pipeline, device)
            assert device.entered.wait(30)
            proxy.freeze()
            started = time.monotonic()
            wait_until_gone(connection, cut_off.connection.info.backend_pid)
            assert time.monotonic() - started < 3
            drain(other, pipeline)
            device.hold.set()  # type: ignore[union-attr]
            for link in proxy.links:
                link.close()
            with pytest.raises(LeaseLost):
                running.result(30)
    connection.execute("delete from pgembed.attempts")
    assert_converged(connection, "reports")


def test_worker_cut_off_without_a_word_notices_and_goes_on(
    connection: Connection, conninfo: str, pipeline: Pipeline, tmp_path: Path
) -> None:
    del pipeline
    with proxied(conninfo) as (proxy, through):
        freeze_once = threading.Event()

        def on_request(link: Link, data: bytes) -> None:
            if b"select 1" in data and not freeze_once.is_set():
                freeze_once.set()
                proxy.freeze()

        proxy.on_request = on_request
        with light_process(through, tmp_path, lease_seconds=1) as worker:
            assert freeze_once.wait(30)
            assert worker.wait(60) == 0, worker.log()
            assert "claim given back" in worker.log()
    assert_converged(connection, "reports")


def test_restarted_worker_waits_for_a_database_that_is_away(
    connection: Connection,
    conninfo: str,
    pipeline: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "reconnect_delay_seconds", lambda _failures, jitter: 0.05)
    recycling: dict[str, Any] = {"batch_seconds": 0.05, "memory_limit_megabytes": 1, "drain": False}
    with (
        proxied(conninfo) as (proxy, through),
        light_workers(through, tmp_path, 1, **recycling) as [worker],
    ):
        wait_until(lambda: has_heartbeat(connection), "the worker looks at its memory")
        proxy.refuse()
        in_vain = lambda: worker.supervisor._failed_starts > 1  # noqa: E731
        wait_until(in_vain, "two processes have started in vain", seconds=90)
        before = starts(worker)
        proxy.refuse(False)
        wait_until(lambda: starts(worker) > before, "the worker starts again", seconds=90)
        worker.supervisor.stop()
        assert worker.wait() == "stopped"
    with open_session(conninfo, worker_id=0) as session:
        drain(session, pipeline)
    assert_converged(connection, "reports")


def test_supervisor_whose_connection_is_cut_while_it_writes_a_death_down_tries_again(
    connection: Connection, conninfo: str, pipeline: Pipeline, tmp_path: Path
) -> None:
    del pipeline
    with proxied(conninfo) as (proxy, through):
        cut = threading.Event()

        def on_request(link: Link, data: bytes) -> None:
            if b"set died_at" in data and not cut.is_set():
                cut.set()
                link.close()

        proxy.on_request = on_request
        fault = Fault("after_read", "kill", tmp_path / "struck")
        with light_workers(through, tmp_path, 1, fault=fault, lease_seconds=10) as [worker]:
            assert worker.wait() == "drained"
        assert cut.is_set()
    assert_converged(connection, "reports")
    assert "suspect set apart" in worker.log()


def has_heartbeat(connection: Connection) -> bool:
    query = (
        "select exists (select from pg_stat_activity where datname = current_database()"
        " and application_name = 'pgembed heartbeat')"
    )
    return one_value(connection, query)


def starts(worker: Supervised) -> int:
    return worker.log().count("worker started")
