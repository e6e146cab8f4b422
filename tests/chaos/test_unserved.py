"""A pipeline that one machine or role cannot serve is left to others, said, and not paused."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from psycopg.types.json import Jsonb

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.catalog import pause_at_fault
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.worker import supervisor
from pgqueue_embed.worker.registry import another_role_serves
from tests.support.commands import pgembed
from tests.support.conditions import wait_until
from tests.support.corpus import make_source, texts
from tests.support.light import light_process, light_workers
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.processes import workers

RECORDS = 20
STATES = "select pipeline, state, pending from pgembed.progress order by pipeline"


def queue(connection: Connection, name: str = "reports") -> Pipeline:
    make_source(connection, texts(RECORDS), table=name)
    pipeline = make_pipeline(connection, Table(schema="public", name=name), name=name)
    enqueue(connection, pipeline, Selection())
    return pipeline


def test_role_without_a_right_leaves_the_pipeline_to_others_and_says_so(
    connection: Connection, conninfo: str, embedder: str, tmp_path: Path
) -> None:
    queue(connection)
    connection.execute("grant all on reports_chunks to embedder")
    with workers(embedder, tmp_path, 1, ["--drain", "--concurrency", "1"]) as [worker]:
        assert worker.wait() == 1, worker.log()
    reason = "reading public.reports as role embedder: permission denied for table reports"
    left = f"reports has {RECORDS} records that this worker cannot serve: {reason}"
    assert f"error: {left}" in worker.log()
    assert connection.execute(STATES).fetchall() == [("reports", "active", RECORDS)]
    with light_process(conninfo, tmp_path) as another:
        assert another.wait() == 0, another.log()
    assert_converged(connection, "reports")


def test_idle_worker_shows_what_it_cannot_serve(
    connection: Connection, conninfo: str, embedder: str, tmp_path: Path
) -> None:
    queue(connection)
    reason = "select unserved from pgembed.worker_status"
    with light_process(embedder, tmp_path, drain=False) as worker:
        shown = lambda: connection.execute(reason).fetchone() not in (None, (None,))  # noqa: E731
        wait_until(shown, "the reason is there")
        (said,) = connection.execute(reason).fetchone() or ("",)
        assert said.startswith("reports: ")
        assert "permission denied" in said
        status = pgembed(conninfo, "status", "reports").stdout
        assert "leaves work to others: reports: " in status
        assert "permission denied" in status
        connection.execute("grant all on reports, reports_chunks to embedder")
    assert "claim given back" not in worker.log()


def test_model_that_this_machine_lacks_is_left_to_others(
    connection: Connection, conninfo: str, tmp_path: Path
) -> None:
    queue(connection)
    queue(connection, "others")
    connection.execute(
        "update pgembed.pipelines set model = '/nowhere/model', model_fingerprint = repeat('e', 64)"
        " where name = 'others'"
    )
    with light_workers(conninfo, tmp_path) as [worker]:
        assert worker.wait() == "drained"
    assert worker.log().count("worker started") == 1
    assert list(worker.supervisor.left) == ["others"]
    assert "/nowhere/model" in worker.supervisor.left["others"]
    assert connection.execute(STATES).fetchall() == [
        ("others", "active", RECORDS),
        ("reports", "active", 0),
    ]
    assert connection.execute("select count(*) from pgembed.workers").fetchone() == (1,)


@pytest.mark.parametrize("command", [["work", "--drain"], ["run", "reports"]])
def test_paused_pipeline_with_work_is_said_and_is_no_success(
    connection: Connection, conninfo: str, tmp_path: Path, command: list[str]
) -> None:
    pipeline = queue(connection)
    pause_at_fault(connection, pipeline, "column body is gone")
    if command[0] == "run":
        ran = pgembed(conninfo, *command, "--source-table", "reports", "--text-field", "body")
        code, said = ran.exit_code, ran.error or ""
    else:
        with workers(conninfo, tmp_path, 1, command[1:]) as [worker]:
            code, said = worker.wait(), worker.log()
    assert code == 1, said
    assert f"reports is paused with {RECORDS} records waiting: column body is gone; mend" in said


def test_idle_workers_that_are_killed_again_and_again_are_replaced(
    connection: Connection, conninfo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "restart_delay_seconds", lambda _crashes: 0.01)
    make_source(connection, texts(RECORDS))
    pipeline = make_pipeline(connection)
    with light_workers(conninfo, tmp_path, drain=False) as [worker]:
        for deaths in range(4):
            started = lambda n=deaths: worker.log().count("worker started") > n  # noqa: E731
            wait_until(started, f"a worker is ready after {deaths} deaths")
            assert worker.send(signal.SIGKILL)
        enqueue(connection, pipeline, Selection())
        done = "select pending = 0 from pgembed.progress"
        wait_until(lambda: connection.execute(done).fetchone() == (True,), "the fifth one works")
    assert worker.error is None
    assert_converged(connection, "reports")


@pytest.mark.parametrize(
    ("change", "serves"),
    [
        ("", True),
        ("role = current_user", False),
        ("stopped_at = clock_timestamp()", False),
        ("heartbeat_at = clock_timestamp() - interval '1 minute'", False),
        ("pipeline_ids = '{}'", False),
        ("unserved = jsonb_build_object(%(id)s::text, 'no right')", False),
    ],
)
def test_pause_needs_the_agreement_of_every_role_at_work(
    connection: Connection, change: str, serves: bool
) -> None:
    pipeline = queue(connection)
    connection.execute(
        "insert into pgembed.workers (id, host, pid, device, precision, model, version,"
        " concurrency, pipeline_ids, role, unserved) overriding system value"
        " values (2, 'mac', 1, 'cpu', 'fp32', 'm', '0', 1, %s, 'another', %s)",
        ([pipeline.id], Jsonb({"77": "another pipeline"})),
    )
    if change:
        connection.execute(f"update pgembed.workers set {change}", {"id": pipeline.id})
    assert another_role_serves(connection, pipeline.id, 1) is serves
