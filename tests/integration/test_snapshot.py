"""The snapshot behind every screen: what it reads is what happened, counted by the test itself."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from random import Random

import pytest

from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import NotFound
from pgqueue_embed.ledger.commits import roll_up
from pgqueue_embed.lifecycle.alter import Changes, alter, catch_up
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.monitoring.details import read_details
from pgqueue_embed.monitoring.snapshot import HISTORY_MINUTES, read_progress, read_snapshot
from pgqueue_embed.pipeline.catalog import pause_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.worker.crashes import record_crash
from pgqueue_embed.worker.registry import (
    WorkerIdentity,
    WorkerReport,
    heartbeat,
    register,
    report_work,
    sign_off,
)
from tests.support.corpus import make_source, texts
from tests.support.fakes import POISON
from tests.support.pipelines import make_pipeline, prepare_with_fake_model, queue_documents
from tests.support.rows import one_value
from tests.support.working import drain, open_session

COMMIT = """
insert into pgembed.batches
    (pipeline_id, worker_id, committed_at, records, embedded, dead, chunks, embed_seconds,
    write_seconds, lock_seconds)
values (%(pipeline_id)s, %(worker_id)s, %(at)s, %(records)s, %(records)s, 0, 0, 6, 3, 2)
"""

HISTORY = """
select minute, commits, records, round(lock_seconds::numeric, 3)
from pgembed.history
where pipeline = 'reports'
order by minute
"""


@pytest.fixture
def reports(connection: Connection) -> Pipeline:
    make_source(connection, texts(1))
    return make_pipeline(connection)


def server_now(connection: Connection) -> datetime:
    now: datetime = one_value(connection, "select clock_timestamp()")
    return now


def start_worker(connection: Connection, pipeline: Pipeline) -> int:
    return register(connection, identity_of(pipeline))


def identity_of(pipeline: Pipeline) -> WorkerIdentity:
    return WorkerIdentity(
        device="cpu",
        precision="fp32",
        model="fake",
        concurrency=2,
        pipeline_ids=[pipeline.id],
    )


def commit(
    connection: Connection, pipeline: Pipeline, worker_id: int, at: datetime, n: int
) -> None:
    values = {"pipeline_id": pipeline.id, "worker_id": worker_id, "at": at, "records": n}
    connection.execute(COMMIT, values)


@pytest.mark.on_both_servers
def test_history_is_what_was_committed_in_each_minute_folded_or_not(
    connection: Connection, reports: Pipeline
) -> None:
    draw, now = Random(1), server_now(connection)
    expected: dict[datetime, list[int]] = defaultdict(lambda: [0, 0])
    with connection.transaction():
        for _ in range(900):
            at = now - timedelta(seconds=draw.uniform(0, 23.9 * 3600))
            records = draw.randrange(1, 300)
            commit(connection, reports, 1, at, records)
            minute = at.replace(second=0, microsecond=0)
            expected[minute][0] += 1
            expected[minute][1] += records
        commit(connection, reports, 1, now - timedelta(days=2), 5_000)

    def is_as_expected() -> bool:
        rows = connection.execute(HISTORY).fetchall()
        return {minute: [commits, n] for minute, commits, n, _ in rows} == expected and all(
            locked == 2 * commits for _, commits, _, locked in rows
        )

    assert is_as_expected()
    total = one_value(connection, "select sum(records) from pgembed.batches")
    assert roll_up(connection, reports.id)
    assert is_as_expected()
    for _ in range(501):
        commit(connection, reports, 1, now - timedelta(days=3), 1)
    assert roll_up(connection, reports.id)
    assert is_as_expected()
    assert one_value(connection, "select sum(records) from pgembed.batches") == total + 501
    connection.execute("update pgembed.minutes set minute = minute - interval '1 day'")
    for _ in range(501):
        commit(connection, reports, 1, now - timedelta(days=3), 1)
    assert roll_up(connection, reports.id)
    old = "select count(*) from pgembed.minutes where minute < now() - interval '1 day'"
    assert one_value(connection, old) == 0


def test_snapshot_sums_what_workers_committed_lately(
    connection: Connection, reports: Pipeline
) -> None:
    draw, now = Random(2), server_now(connection)
    workers = [start_worker(connection, reports) for _ in range(3)]
    by_worker: Counter[int] = Counter()
    with connection.transaction():
        for second in range(0, 600, 5):
            worker_id, records = draw.choice(workers), draw.randrange(90, 110)
            commit(connection, reports, worker_id, now - timedelta(seconds=second), records)
            by_worker[worker_id] += records
        commit(connection, reports, workers[0], now - timedelta(hours=2), 10**6)
        connection.execute(
            "insert into pgembed.work (pipeline_id, keys, records)"
            " select %s, array_agg(n::text), count(*) from generate_series(1, 20000) as n"
            " group by n %% 100",
            (reports.id,),
        )
    snapshot = read_snapshot(connection)
    (pipeline,) = snapshot.pipelines
    assert sum(pipeline.minutes) == by_worker.total()
    assert len(pipeline.minutes) == HISTORY_MINUTES
    assert pipeline.pace is not None
    assert pipeline.pace.records_per_second == pytest.approx(20, rel=0.05)
    assert pipeline.time_left is not None
    assert pipeline.time_left.low_seconds < 1000 < pipeline.time_left.high_seconds
    assert pipeline.bottleneck == "67 % the device"
    shown = {each.row["worker_id"]: sum(each.minutes) for each in snapshot.workers}
    assert shown == dict(by_worker)
    assert all((each.commit_seconds_ago or 0) < 120 for each in snapshot.workers)


@pytest.mark.usefixtures("reports")
@pytest.mark.parametrize("read", [read_snapshot, read_progress, read_details])
def test_unknown_pipeline_is_told_with_those_that_are_there(
    connection: Connection, read: Callable[[Connection, str], object]
) -> None:
    with pytest.raises(NotFound, match="there is no pipeline 'report'; there is reports"):
        read(connection, "report")


def test_dead_letters_are_grouped_by_what_their_errors_have_in_common(
    connection: Connection, reports: Pipeline
) -> None:
    errors = {
        "value 1234 is out of range": "value N is out of range",
        "value 7.5 is out of range": "value N is out of range",
        'bad input: "one"': "bad input: …",
        'bad input: "two 2"': "bad input: …",
        'violates check constraint "no7"': 'violates check constraint "no7"',
        'violates check constraint "no8"': 'violates check constraint "no8"',
        "x" * 5_000: "x" * 200,
    }
    for key, error in enumerate(errors):
        connection.execute(
            "insert into pgembed.records (pipeline_id, key, state, dead_at, last_error)"
            " values (%s, %s, 'dead', now(), %s)",
            (reports.id, str(key), error),
        )
    connection.execute("insert into pgembed.batches (pipeline_id, dead) values (1, 7)")
    found = {row["error"]: row for row in read_snapshot(connection).failures}
    assert {error: row["failures"] for error, row in found.items()} == Counter(errors.values())
    of_key = dict(enumerate(errors.values()))
    assert all(of_key[int(row["example_key"])] == error for error, row in found.items())
    assert read_snapshot(connection).failures[0]["failures"] == 2


def kinds(connection: Connection) -> list[str]:
    return [str(row["kind"]) for row in read_snapshot(connection).events][::-1]


def report(**changes: object) -> WorkerReport:
    none: Mapping[str, object] = {
        "records": 0,
        "fp32_chunks": 0,
        "leases_lost": 0,
        "commit_seconds_ago": None,
        "last_error": None,
        "error_seconds_ago": None,
    }
    return WorkerReport(**{**none, **changes})  # type: ignore[arg-type]


@pytest.mark.on_both_servers
def test_each_thing_that_happens_is_an_event_once(
    connection: Connection, reports: Pipeline
) -> None:
    worker_id = start_worker(connection, reports)

    def live() -> None:
        heartbeat(
            connection,
            worker_id,
            state="working",
            identity=identity_of(reports),
            memory_bytes=1,
            pipeline_ids=[],
            unserved={},
        )

    live()
    connection.execute("update pgembed.workers set heartbeat_at = now() - interval '50 seconds'")
    live()
    live()
    report_work(connection, worker_id, report(records=7, commit_seconds_ago=3.0))
    lost = report(leases_lost=1, last_error="it took too long", error_seconds_ago=1.0)
    report_work(connection, worker_id, lost)
    report_work(connection, worker_id, lost)
    record_crash(connection, worker_id, "crashed: killed by SIGKILL")
    sign_off(connection, worker_id, "stopped")
    again = start_worker(connection, reports)
    sign_off(connection, again, "drained")
    pause_pipeline(connection, reports, "column body is gone")
    pause_pipeline(connection, reports, "still so")
    connection.execute("select pgembed.resume('reports')")
    assert kinds(connection) == [
        *("started", "recovered", "lease lost", "crashed", "restarted", "stopped"),
        *("paused", "resumed"),
    ]
    details = {row["kind"]: row["detail"] for row in read_snapshot(connection).events}
    assert details["crashed"] == "killed by SIGKILL"
    assert details["lease lost"] == "it took too long"
    assert details["paused"] == "column body is gone"
    assert details["stopped"] == "drained"


def test_switch_of_generations_is_one_event(
    connection: Connection, conninfo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgqueue_embed.lifecycle.alter.prepare", prepare_with_fake_model)
    monkeypatch.setattr("pgqueue_embed.lifecycle.alter.check_local_model", lambda _: None)
    pipeline = queue_documents(connection, texts(3))
    with open_session(conninfo) as session:
        drain(session, pipeline)
        successor = alter(connection, pipeline, Changes(overlap_tokens=2))
        assert successor is not None
        catch_up(connection, pipeline, successor)
        drain(session, successor)
    switch(connection, pipeline)
    assert kinds(connection) == ["switched"]


def test_a_worker_that_holds_records_is_working_and_another_idle(
    connection: Connection, conninfo: str
) -> None:
    from pgqueue_embed.monitoring.words import NO_WORK, facts, worker_state
    from tests.support.working import work_once

    pipeline = queue_documents(connection, [*texts(3), POISON])
    worker_id = start_worker(connection, pipeline)
    seen: list[str] = []
    told: list[bool] = []

    def look() -> None:
        snapshot = read_snapshot(connection)
        seen.extend(worker_state(each, snapshot.now) for each in snapshot.workers)
        seen.append(str(snapshot.workers[0].in_flight))
        told.append(NO_WORK in facts(snapshot.pipelines[0]))

    look()
    with open_session(conninfo, worker_id=worker_id, checkpoint=look) as session:
        work_once(session, pipeline)
    assert seen[:2] == ["idle", "0"]
    assert seen[2:4] == ["working", "4"]
    assert told[:2] == [False, True]
