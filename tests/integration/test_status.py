"""`pgembed status`: what it shows a person, and what it gives a program."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.lifecycle.alter import Changes, alter
from pgqueue_embed.monitoring import snapshot
from pgqueue_embed.monitoring.snapshot import read_progress, read_snapshot
from pgqueue_embed.pipeline.catalog import load_pipeline, pause_at_fault, pause_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.untrusted.shell import command
from pgqueue_embed.worker.models import left_undone
from pgqueue_embed.worker.registry import WorkerIdentity, register, sign_off
from tests.support.commands import pgembed
from tests.support.conditions import wait_until
from tests.support.corpus import make_source, set_text, texts
from tests.support.fakes import POISON
from tests.support.pipelines import (
    REPORTS,
    make_pipeline,
    prepare_with_fake_model,
    queue_documents,
)
from tests.support.working import drain, open_session


@pytest.fixture
def reports(connection: Connection) -> Pipeline:
    """A pipeline with 6 records queued, one of which will die."""
    return queue_documents(connection, [*texts(5), POISON], max_attempts=1)


def start_worker(connection: Connection, *pipelines: Pipeline, host: str = "mac-mini") -> int:
    identity = WorkerIdentity(
        device="mps",
        precision="fp16",
        model="fake",
        concurrency=2,
        pipeline_ids=[pipeline.id for pipeline in pipelines],
    )
    worker_id = register(connection, identity)
    connection.execute("update pgembed.workers set host = %s where id = %s", (host, worker_id))
    return worker_id


def test_no_pipeline_is_said_with_the_way_out(conninfo: str) -> None:
    assert "pgembed create" in pgembed(conninfo, "status").stdout


def test_a_database_without_schema_is_told_to_migrate(empty_conninfo: str) -> None:
    ran = pgembed(empty_conninfo, "status")
    assert ran.error is not None
    assert "pgembed migrate" in ran.error
    assert ran.exit_code == 1


def test_an_unknown_pipeline_is_a_usage_error_that_names_the_others(
    conninfo: str, reports: Pipeline
) -> None:
    ran = pgembed(conninfo, "status", "nope")
    assert ran.error == "there is no pipeline 'nope'; there is reports"
    assert ran.exit_code == 2


def test_json_has_the_columns_of_the_views_and_what_follows_from_them(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    start_worker(connection, reports)
    found = json.loads(pgembed(conninfo, "status", "--json").stdout)
    assert sorted(found) == ["events", "failures", "pipelines", "workers"]
    views = {"pipelines": "progress", "workers": "worker_status", "events": "events"}
    for part, view in views.items():
        cursor = connection.execute(f"select * from pgembed.{view}")
        assert cursor.description is not None
        columns = [column.name for column in cursor.description]
        assert [list(row)[: len(columns)] for row in found[part]] == [columns]
    assert found["pipelines"][0]["pending"] == 6
    assert found["pipelines"][0]["time_left_low_seconds"] is None
    assert found["events"][0]["kind"] == "started"


def test_waiting_work_without_a_worker_asks_for_one(conninfo: str, reports: Pipeline) -> None:
    shown = pgembed(conninfo, "status").stdout
    assert "no worker" in shown
    assert "reports waits for a worker; on any machine: pgembed work" in shown


def test_an_empty_queue_with_dead_letters_is_not_complete_and_asks_for_an_index(
    conninfo: str, reports: Pipeline
) -> None:
    with open_session(conninfo) as session:
        drain(session, reports)
    shown = pgembed(conninfo, "status").stdout
    assert "complete" not in shown
    assert "83.3 %" in shown
    assert "queue empty" in shown
    assert "reports has 1 dead letter; read: pgembed failures reports" in shown
    assert "no vector index; build one: pgembed index reports" in shown
    pgembed(conninfo, "index", "reports")
    assert "vector index" not in pgembed(conninfo, "status").stdout


def test_what_an_index_of_vectors_costs_is_said_where_much_waits_beside_it(
    connection: Connection, conninfo: str, reports: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_session(conninfo) as session:
        drain(session, reports)
    pgembed(conninfo, "index", "reports")
    enqueue(connection, reports, Selection(everything=True))
    assert "many times" not in pgembed(conninfo, "status").stdout
    monkeypatch.setattr(snapshot, "MANY_RECORDS", 2)
    shown = pgembed(conninfo, "status").stdout.replace("\n", " ")
    assert "wait to be written beside index reports_chunks_embedding_hnsw" in shown
    assert "pgembed alter reports" in shown
    with open_session(conninfo) as session:
        drain(session, reports)
    monkeypatch.setattr(snapshot, "LARGE_INDEX_BYTES", 0)
    # What was deleted is in the statistics once the session that did it has told.
    wait_until(lambda: "the next vacuum goes through all of" in status(conninfo), "told")
    connection.execute("vacuum reports_chunks")
    wait_until(lambda: "next vacuum" not in status(conninfo), "forgotten")


def status(conninfo: str) -> str:
    return pgembed(conninfo, "status").stdout


def test_a_dead_record_that_is_queued_again_is_not_missing_among_the_done(
    connection: Connection, conninfo: str, reports: Pipeline
) -> None:
    with open_session(conninfo) as session:
        drain(session, reports)
    set_text(connection, REPORTS, 6, "Harmless now.")
    assert enqueue(connection, reports, Selection()) == 1
    progress = "select total, done, dead, pending, percent from pgembed.progress"
    assert connection.execute(progress).fetchone() == (6, 5, 1, 1, Decimal("66.6"))


def counts_are_known(connection: Connection) -> None:
    """Have the server write down at once what it counts of this session, and look again."""
    connection.execute("select pg_stat_force_next_flush()")
    connection.execute("select")


def test_rows_that_were_never_queued_are_no_part_of_what_is_complete(
    conninfo: str, connection: Connection
) -> None:
    source = make_source(connection, texts(150))
    pipeline = make_pipeline(connection, source)
    counts_are_known(connection)
    enqueue(connection, pipeline, Selection(limit=100))
    with open_session(conninfo) as session:
        drain(session, pipeline)
        shown = pgembed(conninfo, "status").stdout
        assert "complete" not in shown
        assert "queue empty; about 50 source rows were never queued (an estimate" in shown
        assert "queue them: pgembed enqueue reports" in shown
        enqueue(connection, pipeline, Selection())
        drain(session, pipeline)
    shown = pgembed(conninfo, "status").stdout
    assert "never queued" not in shown
    assert "complete" in shown


@pytest.mark.parametrize("where", ["id < 100", None])
def test_nothing_is_called_complete_of_which_no_statistics_tell(
    conninfo: str, connection: Connection, where: str | None
) -> None:
    source = make_source(connection, texts(9))
    if where is None:
        connection.execute("create view reports_now as select * from reports")
        source = Table(schema="public", name="reports_now")
    pipeline = make_pipeline(connection, source, where=where)
    enqueue(connection, pipeline, Selection())
    with open_session(conninfo) as session:
        drain(session, pipeline)
    never = "select never_queued from pgembed.progress"
    assert connection.execute(never).fetchone() == (None,)
    shown = pgembed(conninfo, "status").stdout
    assert "queue empty" in shown
    assert "never queued" not in shown


def test_what_is_queued_again_is_counted_once_and_said_apart(
    conninfo: str, connection: Connection
) -> None:
    source = make_source(connection, texts(40))
    pipeline = make_pipeline(connection, source)
    enqueue(connection, pipeline, Selection(limit=25))
    with open_session(conninfo) as session:
        drain(session, pipeline)
    for key in (1, 2, 3):
        set_text(connection, REPORTS, key, "Another text now.")
    enqueue(connection, pipeline, Selection())
    now = read_progress(connection, "reports")
    assert (now.done, now.pending, now.pending_new, now.pending_changed) == (25, 18, 15, 3)
    assert now.total == now.done + now.dead + now.pending_new == 40
    assert now.percent == 55.0
    assert not now.is_complete
    shown = pgembed(conninfo, "status").stdout
    assert "25 of 40 · 15 new · 3 changed" in shown
    assert "55.0 %" in shown


def test_a_next_generation_is_shown_with_its_pipeline(
    conninfo: str,
    connection: Connection,
    reports: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pgqueue_embed.lifecycle.alter.prepare", prepare_with_fake_model)
    monkeypatch.setattr("pgqueue_embed.lifecycle.alter.check_local_model", lambda _: None)
    alter(connection, reports, Changes(overlap_tokens=2))
    assert "reports (next)" in pgembed(conninfo, "status", "reports").stdout


def test_nobody_takes_the_name_of_a_next_generation(
    conninfo: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgqueue_embed.lifecycle.alter.prepare", prepare_with_fake_model)
    monkeypatch.setattr("pgqueue_embed.lifecycle.alter.check_local_model", lambda _: None)
    name = 100 * "n"
    make_pipeline(connection, make_source(connection, texts(2)), name=name)
    for taking in (
        ("create", f"{name} (next)", "--source-table", "reports", "--text-field", "body"),
        ("adopt", f"{name} (next)", "--source-table", "reports", "--text-field", "body"),
        ("alter", name, "--rename", f"{name} (next)"),
    ):
        ran = pgembed(conninfo, *taking)
        assert (ran.exit_code, "would be the next generation" in str(ran.error)) == (2, True)
    alter(connection, load_pipeline(connection, name), Changes(overlap_tokens=2))
    assert read_progress(connection, f"{name} (next)").state == "active"


def test_a_paused_pipeline_tells_why(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    pause_pipeline(connection, reports, "column [body] is gone")
    shown = pgembed(conninfo, "status").stdout
    assert "reports is paused: column [body] is gone; go on: pgembed resume reports" in shown


@pytest.mark.parametrize("name", ["reports", "my reports"])
def test_the_way_out_of_a_pause_is_said_once_for_the_name_of_now(
    conninfo: str, connection: Connection, reports: Pipeline, name: str
) -> None:
    pause_at_fault(connection, reports, "reading: on fire")
    connection.execute("update pgembed.pipelines set name = %s", (name,))
    way_out = f"paused: reading: on fire; mend it and run: {command('resume', name)}"
    (line,) = [line for line in pgembed(conninfo, "status").stdout.splitlines() if "fire" in line]
    assert line == f"• {name} is {way_out}"
    (left,) = left_undone(connection, [load_pipeline(connection, name)], {}).values()
    assert left == f"is paused with 6 records waiting: {way_out.partition(': ')[2]}"


def test_only_the_named_pipeline_and_its_workers_are_shown(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    notes = make_pipeline(connection, make_source(connection, table="notes"), name="notes")
    start_worker(connection, reports, host="mac-a")
    start_worker(connection, notes, host="mac-b")
    shown = pgembed(conninfo, "status", "notes").stdout
    assert "mac-b" in shown
    assert "mac-a" not in shown
    assert "reports" not in shown


def test_a_worker_that_stopped_long_ago_is_left_out(
    connection: Connection, reports: Pipeline
) -> None:
    just_now, long_ago = start_worker(connection, reports), start_worker(connection, reports)
    sign_off(connection, just_now, "drained")
    sign_off(connection, long_ago, "drained")
    connection.execute(
        "update pgembed.workers set stopped_at = stopped_at - interval '1 hour' where id = %s",
        (long_ago,),
    )
    assert [each.row["worker_id"] for each in read_snapshot(connection).workers] == [just_now]


def test_a_worker_that_fell_silent_is_shown_with_the_time_of_silence(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    start_worker(connection, reports)
    connection.execute("update pgembed.workers set heartbeat_at = now() - interval '5 minutes'")
    assert "silent 5 min" in pgembed(conninfo, "status").stdout


def test_an_abnormal_end_of_a_worker_is_explained_and_an_ordinary_one_is_not(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    sign_off(connection, start_worker(connection, reports, host="mac-a.local"), "disk on fire")
    sign_off(connection, start_worker(connection, reports, host="mac-b.local"), "drained")
    shown = pgembed(conninfo, "status").stdout
    assert "stopped: disk on fire" in shown
    assert "stopped: drained" not in shown


def test_a_name_that_the_shell_would_split_is_quoted_in_every_hint(
    conninfo: str, connection: Connection
) -> None:
    source = make_source(connection, texts(1), table="notes")
    pipeline = make_pipeline(connection, source, name="my [red] notes")
    enqueue(connection, pipeline, Selection())
    with open_session(conninfo) as session:
        drain(session, load_pipeline(connection, pipeline.name))
    shown = pgembed(conninfo, "status").stdout
    assert "pgembed index 'my [red] notes'" in shown
