"""Pipelines that are paused, resumed, and dropped with all that is theirs."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import PipelineReplaced, UsageError
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.pipeline.catalog import (
    load_pipeline,
    load_pipelines,
    pause_pipeline,
    resume_pipeline,
)
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue import capture
from pgqueue_embed.queue.claims import claimable_pipelines
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.queue.housekeeping import clean_up
from tests.support.conditions import wait_until_blocked
from tests.support.corpus import make_source, set_text, texts
from tests.support.fakes import FakeDevice
from tests.support.oracle import assert_converged
from tests.support.pipelines import REPORTS, make_pipeline
from tests.support.rows import one_value
from tests.support.tables import exists
from tests.support.working import drain, open_session, work_once


@pytest.fixture(autouse=True)
def _source(connection: Connection) -> None:
    make_source(connection, texts(10))


def test_unknown_pipeline_is_refused_with_those_that_there_are(connection: Connection) -> None:
    with pytest.raises(UsageError, match="no pipeline 'x'; there is none yet; make one"):
        load_pipeline(connection, "x")
    make_pipeline(connection)
    with pytest.raises(UsageError, match="no pipeline 'x'; there is reports"):
        load_pipelines(connection, ["reports", "x"])
    assert [pipeline.name for pipeline in load_pipelines(connection)] == ["reports"]


def test_paused_pipeline_says_why_until_it_is_resumed(connection: Connection) -> None:
    pipeline = make_pipeline(connection)
    enqueue(connection, pipeline, Selection())
    shown = "select state, state_reason from pgembed.progress"
    pause_pipeline(connection, pipeline, "by a person")
    assert connection.execute(shown).fetchone() == ("paused", "by a person")
    assert claimable_pipelines(connection, [pipeline.id], alone=False) == []
    resume_pipeline(connection, pipeline)
    assert connection.execute(shown).fetchone() == ("active", None)
    assert claimable_pipelines(connection, [pipeline.id], alone=False) == [pipeline.id]


@pytest.mark.parametrize("delete_vectors", [False, True])
def test_dropped_pipeline_leaves_nothing_but_its_vectors(
    connection: Connection, conninfo: str, delete_vectors: bool
) -> None:
    pipeline = make_pipeline(connection)
    kept = make_pipeline(connection, name="kept", target=Table(schema="public", name="kept"))
    for each in (pipeline, kept):
        enqueue(connection, each, Selection())
        with open_session(conninfo) as session:
            drain(session, each)
    enqueue(connection, pipeline, Selection(everything=True))
    drop_pipeline(connection, pipeline, delete_vectors=delete_vectors)
    assert traces(connection, pipeline.id) == {}
    # A pipeline of this name that is made later has not been paused.
    assert connection.value("select count(*) from pgembed.events where pipeline = 'reports'") == 0
    assert exists(connection) is not delete_vectors
    assert_converged(connection, "kept")


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_pipeline_that_is_dropped_while_a_worker_holds_work_leaves_nothing(
    connection: Connection, conninfo: str, isolation: str
) -> None:
    pipeline = make_pipeline(connection)
    enqueue(connection, pipeline, Selection())
    device = FakeDevice(hold=threading.Event())
    with (
        open_session(conninfo) as session,
        connect(conninfo) as dropping,
        ThreadPoolExecutor(2) as pool,
    ):
        dropping.execute(f"set default_transaction_isolation = '{isolation}'")
        working = pool.submit(work_once, session, pipeline, device)
        assert device.entered.wait(30)
        # The worker will put this record back into the queue, in the commit that drop waits for.
        set_text(connection, REPORTS, 3, "changed meanwhile")
        dropped = pool.submit(drop_pipeline, dropping, pipeline, delete_vectors=True)
        wait_until_blocked(connection, dropping.info.backend_pid)
        device.hold.set()  # type: ignore[union-attr]
        assert working.result(30) is not None
        dropped.result(30)
    assert traces(connection, pipeline.id) == {}
    assert not exists(connection)


@pytest.mark.parametrize(
    "queue",
    [
        "select pgembed.enqueue('reports', array[1, 2])",
        "select pgembed.retry('reports')",
        "update reports set body = body || ' More.'",
    ],
    ids=["enqueue", "retry", "trigger"],
)
def test_what_an_open_transaction_has_queued_goes_with_the_pipeline(
    connection: Connection, conninfo: str, queue: str
) -> None:
    pipeline = make_pipeline(connection)
    capture.install(connection, pipeline)
    connection.execute(
        "insert into pgembed.records (pipeline_id, key, state, dead_at, last_error)"
        " select %s, n::text, 'dead', now(), 'of old' from generate_series(1, 3) as n",
        (pipeline.id,),
    )
    with (
        psycopg.connect(conninfo) as user,
        connect(conninfo) as dropping,
        ThreadPoolExecutor(1) as pool,
    ):
        user.execute(queue)
        dropped = pool.submit(drop_pipeline, dropping, pipeline, delete_vectors=True)
        wait_until_blocked(connection, dropping.info.backend_pid)
        user.commit()
        dropped.result(30)
    assert traces(connection, pipeline.id) == {}


def test_enqueue_beside_a_drop_queues_nothing(connection: Connection, conninfo: str) -> None:
    pipeline = make_pipeline(connection)
    with connect(conninfo) as dropping, connect(conninfo) as user, ThreadPoolExecutor(1) as pool:
        with dropping.transaction():
            drop_pipeline(dropping, pipeline, delete_vectors=True)
            queued = pool.submit(user.execute, "select pgembed.enqueue('reports', array[1])")
            wait_until_blocked(connection, user.info.backend_pid)
        with pytest.raises(psycopg.errors.UndefinedObject, match="there is no pipeline 'reports'"):
            queued.result(30)
        with pytest.raises(PipelineReplaced):
            enqueue(user, pipeline, Selection())
    assert traces(connection, pipeline.id) == {}


@pytest.mark.parametrize("in_the_way", ["a writer of the source", "a view on the vectors"])
@pytest.mark.parametrize("paused", [True, False])
def test_drop_that_fails_has_changed_nothing(
    connection: Connection,
    conninfo: str,
    monkeypatch: pytest.MonkeyPatch,
    in_the_way: str,
    paused: bool,
) -> None:
    monkeypatch.setattr("pgqueue_embed.db.locks.TRIES", 1)
    pipeline = make_pipeline(connection)
    capture.install(connection, pipeline)
    enqueue(connection, pipeline, Selection())
    if paused:
        pause_pipeline(connection, pipeline, "paused by a person")
    connection.execute("create view mine as select * from reports_chunks")
    before = (everything_of(connection, pipeline), exists(connection))
    with connect(conninfo) as writer, writer.transaction(force_rollback=True):
        if in_the_way == "a writer of the source":
            writer.execute("insert into public.reports (id, body) values (99, 'One more.')")
        with pytest.raises(UsageError, match=r"is used"):
            drop_pipeline(connection, pipeline, delete_vectors=True)
    assert (everything_of(connection, pipeline), exists(connection)) == before
    connection.execute("drop view mine")
    drop_pipeline(connection, pipeline, delete_vectors=True)
    assert traces(connection, pipeline.id) == {}


def everything_of(connection: Connection, pipeline: Pipeline) -> object:
    """Return the row of a pipeline, the rows that it has elsewhere, and its triggers."""
    row = connection.execute("select * from pgembed.pipelines where id = %s", (pipeline.id,))
    triggers = "select tgname, tgenabled from pg_trigger where tgname ^@ 'pgembed_' order by 1"
    found = connection.execute(triggers).fetchall()
    assert found
    return row.fetchone(), traces(connection, pipeline.id), found


def test_drop_that_is_interrupted_while_it_waits_has_changed_nothing(
    connection: Connection, conninfo: str
) -> None:
    pipeline = make_pipeline(connection)
    enqueue(connection, pipeline, Selection())
    with (
        connect(conninfo) as holder,
        connect(conninfo) as dropping,
        ThreadPoolExecutor(1) as pool,
        holder.transaction(),
    ):
        holder.execute("select from pgembed.work for update")
        dropped = pool.submit(drop_pipeline, dropping, pipeline, delete_vectors=False)
        wait_until_blocked(connection, dropping.info.backend_pid)
        connection.execute("select pg_cancel_backend(%s)", (dropping.info.backend_pid,))
        with pytest.raises(psycopg.errors.QueryCanceled):
            dropped.result(30)
    assert load_pipeline(connection, "reports") == pipeline
    assert claimable_pipelines(connection, [pipeline.id], alone=False) == [pipeline.id]


def test_housekeeping_removes_what_is_of_no_pipeline(connection: Connection) -> None:
    kept = make_pipeline(connection)
    enqueue(connection, kept, Selection())
    before = traces(connection, kept.id)
    for gone in (-5, kept.id + 7):
        connection.execute(
            "insert into pgembed.work (pipeline_id, keys, records) values (%s, '{1}', 1)", (gone,)
        )
        connection.execute(
            "insert into pgembed.records (pipeline_id, key) values (%s, '1')", (gone,)
        )
        connection.execute("insert into pgembed.batches (pipeline_id) values (%s)", (gone,))
        connection.execute(A_MINUTE, (gone,))
    clean_up(connection)
    assert [traces(connection, each) for each in (-5, kept.id + 7)] == [{}, {}]
    assert traces(connection, kept.id) == before


A_MINUTE = """
insert into pgembed.minutes
values (%s, date_trunc('minute', now()), 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0)
"""


def traces(connection: Connection, pipeline_id: int) -> dict[str, int]:
    """Return how many rows of each table belong to the pipeline, where there are any."""
    found = {}
    for table in ("work", "records", "batches", "minutes", "scans", "adoptions"):
        query = f"select count(*) from pgembed.{table} where pipeline_id = %s"
        found[table] = one_value(connection, query, (pipeline_id,))
    return {table: rows for table, rows in found.items() if rows}
