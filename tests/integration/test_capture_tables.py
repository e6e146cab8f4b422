"""Tables with triggers of capture, what takes these away, and who may not have them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from psycopg.conninfo import make_conninfo

from pgqueue_embed import Database
from pgqueue_embed.db import locks
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.doctor.pipeline import check_capture
from pgqueue_embed.errors import UsageError
from pgqueue_embed.lifecycle.alter import Changes, abort, alter, catch_up
from pgqueue_embed.lifecycle.create import create
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.lifecycle.sync import queue_missed, start_capture, stop_capture
from pgqueue_embed.pipeline.catalog import load_pipeline, pipeline_names
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.pipeline.spec_checks import checked
from pgqueue_embed.queue.capture import install, is_on, lacking, misfiring, remove
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.capturing import COMPARISON, SWEEP, captured, trace
from tests.support.commands import pgembed
from tests.support.conditions import wait_until_blocked
from tests.support.corpus import make_source, set_text, texts
from tests.support.oracle import assert_converged
from tests.support.pipelines import REPORTS, make_pipeline, prepare_with_fake_model
from tests.support.working import drain, open_session

PARTITIONED = """
create table reports (body text, id int primary key) partition by range (id);
create table part_1 partition of reports for values from (0) to (100);
create table part_2 partition of reports for values from (100) to (200) partition by range (id);
create table part_2a partition of part_2 for values from (100) to (150);
insert into reports (id, body) values (1, 'one'), (2, 'two'), (101, 'more')
"""


@pytest.mark.on_both_servers
def test_partitions_are_captured_whichever_table_a_statement_names(
    connection: Connection,
) -> None:
    connection.execute(PARTITIONED)
    pipeline = make_pipeline(connection)
    assert [table.name for table in install(connection, pipeline)] == [
        *("reports", "part_1", "part_2", "part_2a")
    ]
    queued = {}
    for statement in (
        "insert into reports (id, body) values (3, 'a'), (103, 'b')",
        "insert into part_1 (id, body) values (4, 'a')",
        "insert into part_2 (id, body) values (104, 'a')",
        "update reports set body = 'changed' where id in (1, 101)",
        "update part_2a set body = 'changed'",
        "update reports set id = id + 100 where id = 2",
        "delete from part_1 where id = 1",
        "truncate part_1",
    ):
        with connection.transaction(force_rollback=True):
            connection.execute(statement)
            queued[statement] = captured(connection)
    assert list(queued.values()) == [
        *(["103", "3"], ["4"], ["104"], ["1", "101"], ["101"], ["102", "2"], ["1"], [SWEEP])
    ]
    remove(connection, pipeline)
    assert trace(connection) == []


def test_partition_that_is_attached_later_is_named_until_capture_is_put_on_it(
    connection: Connection,
) -> None:
    connection.execute(PARTITIONED)
    pipeline = make_pipeline(connection)
    install(connection, pipeline)
    assert [check.mark.value for check in check_capture(connection, pipeline)] == ["ok"]
    connection.execute("create table part_3 partition of reports for values from (300) to (400)")
    (check,) = check_capture(connection, pipeline)
    assert check.finding == "what is written straight to public.part_3 is not captured"
    assert check.fix == "pgembed sync reports --on"
    connection.execute("insert into part_3 (id) values (300)")
    assert captured(connection) == []
    assert start_capture(connection, pipeline) == [Table(schema="public", name="part_3")]
    assert queue_missed(connection, pipeline) == 4
    assert "300" in captured(connection)
    connection.execute("insert into part_3 (id) values (301)")
    assert captured(connection) == ["301"]
    assert start_capture(connection, pipeline) == []


def test_inheriting_tables_are_captured(connection: Connection) -> None:
    connection.execute(
        """
        create table reports (id int primary key, body text);
        create table child (more text) inherits (reports)
        """
    )
    pipeline = make_pipeline(connection)
    install(connection, pipeline)
    connection.execute("insert into child values (1, 'text')")
    connection.execute("update reports set body = 'changed'")
    assert captured(connection) == ["1", "1"]
    connection.execute("set session_replication_role = replica")
    connection.execute("delete from child")
    assert captured(connection) == ["1"]


def test_trigger_that_was_disabled_is_named_and_enabled_again(connection: Connection) -> None:
    make_source(connection, texts(1))
    pipeline = make_pipeline(connection)
    install(connection, pipeline)
    connection.execute("alter table reports disable trigger all")
    assert lacking(connection, pipeline) == [REPORTS]
    install(connection, pipeline)
    assert lacking(connection, pipeline) == []
    connection.execute("update reports set body = 'changed'")
    assert captured(connection) == ["1"]


# Sessions that apply what is replicated


@pytest.mark.on_both_servers
@pytest.mark.parametrize("table", ["part_1", "reports"])
def test_rows_are_captured_in_sessions_that_replicate(connection: Connection, table: str) -> None:
    connection.execute(PARTITIONED)
    install(connection, make_pipeline(connection))
    connection.execute("set session_replication_role = replica")
    queued = []
    for statement in (
        f"insert into {table} (id, body) values (5, 'a')",
        f"update {table} set body = body where id = 5",
        f"update {table} set body = 'b' where id = 5",
        f"update {table} set id = 6 where id = 5",
        f"delete from {table} where id = 6",
        f"truncate {table}",
    ):
        connection.execute(statement)
        queued.append(sorted(set(captured(connection))))
    assert queued == [["5"], [], ["5"], ["5", "6"], ["6"], [SWEEP]]


# What takes capture away


def test_capture_that_is_off_has_left_nothing(connection: Connection) -> None:
    make_source(connection, texts(1))
    pipeline = make_pipeline(connection)
    assert not is_on(connection, pipeline)
    install(connection, pipeline)
    assert is_on(connection, pipeline)
    assert len(trace(connection)) == 10
    assert remove(connection, pipeline)
    assert trace(connection) == []
    assert not is_on(connection, pipeline)
    assert not remove(connection, pipeline)


def test_dropped_pipeline_leaves_no_trigger_and_that_of_another_stays(
    connection: Connection,
) -> None:
    make_source(connection, texts(1))
    dropped = make_pipeline(connection)
    other = make_pipeline(connection, name="other", target=Table(schema="public", name="others"))
    install(connection, dropped)
    install(connection, other)
    drop_pipeline(connection, dropped, delete_vectors=True)
    assert len(trace(connection)) == 10
    connection.execute("update reports set body = 'changed'")
    assert captured(connection) == ["1"]
    assert is_on(connection, other)


@pytest.fixture
def _fake_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgqueue_embed.lifecycle.alter.prepare", prepare_with_fake_model)
    monkeypatch.setattr("pgqueue_embed.lifecycle.alter.check_local_model", lambda _: None)
    monkeypatch.setattr("pgqueue_embed.lifecycle.create.prepare", prepare_with_fake_model)
    monkeypatch.setattr("pgqueue_embed.lifecycle.create.describe_unknown_tokens", lambda *_: None)


@pytest.mark.usefixtures("_fake_models")
def test_capture_goes_over_to_the_next_generation(conninfo: str, connection: Connection) -> None:
    make_source(connection, texts(20))
    pipeline = make_pipeline(connection)
    start_capture(connection, pipeline)
    with open_session(conninfo) as session:
        enqueue(connection, pipeline, Selection())
        drain(session, pipeline)
        successor = alter(connection, pipeline, Changes(chunk_tokens=12))
        assert successor is not None
        set_text(connection, REPORTS, 21, "between capture and scan")
        catch_up(connection, pipeline, successor)
        drain(session, pipeline)
        drain(session, successor)
        set_text(connection, REPORTS, 1, "changed for both")
        connection.execute("delete from reports where id = 2")
        switched = switch(connection, pipeline)
        assert len(trace(connection)) == 10
        set_text(connection, REPORTS, 3, "changed after the switch")
        drain(session, switched)
    assert_converged(connection, "reports")


@pytest.mark.usefixtures("_fake_models")
def test_switch_takes_over_what_a_writer_queues_at_that_moment(
    conninfo: str, connection: Connection
) -> None:
    make_source(connection, texts(3))
    pipeline = make_pipeline(connection)
    start_capture(connection, pipeline)
    successor = alter(connection, pipeline, Changes(chunk_tokens=12))
    assert successor is not None
    with connect(conninfo) as writer, connect(conninfo) as switching:
        writer.execute("begin; update public.reports set body = 'changed' where id = 1")
        thread = threading.Thread(target=switch, args=(switching, pipeline))
        thread.start()
        wait_until_blocked(connection, switching.info.backend_pid)
        writer.execute("commit")
        thread.join(30)
    ids = "select distinct pipeline_id from pgembed.work"
    assert connection.execute(ids).fetchall() == [(successor.id,)]
    assert set(captured(connection)) == {"1"}


@pytest.mark.usefixtures("_fake_models")
def test_next_generation_that_is_given_up_leaves_no_trigger(connection: Connection) -> None:
    make_source(connection, texts(3))
    pipeline = make_pipeline(connection)
    alter(connection, pipeline, Changes(chunk_tokens=12))
    assert trace(connection) == [], "capture was off"
    start_capture(connection, pipeline)
    assert len(trace(connection)) == 20, "of both generations"
    abort(connection, pipeline)
    assert len(trace(connection)) == 10
    stop_capture(connection, pipeline)
    assert trace(connection) == []


# Who may not have it


def test_view_is_refused_with_the_way_out(connection: Connection) -> None:
    make_source(connection, texts(1))
    connection.execute("create view view_of_reports as select * from reports")
    pipeline = make_pipeline(connection, Table(schema="public", name="view_of_reports"))
    message = r"view_of_reports is a view .* without triggers, pgembed enqueue reports finds"
    with pytest.raises(UsageError, match=message):
        install(connection, pipeline)
    assert trace(connection) == []


@pytest.fixture
def guest(conninfo: str, connection: Connection) -> Iterator[Connection]:
    """A role that owns schema pgembed's tables as far as it needs to, and not the source."""
    make_source(connection, texts(1))
    connection.execute(
        """
        create role guest login password 'of-a-role';
        grant all on schema pgembed, public to guest;
        grant all on all tables in schema pgembed to guest;
        grant all on reports to guest
        """
    )
    with connect(make_conninfo(conninfo, user="guest", password="of-a-role")) as session:
        yield session
    connection.execute("drop owned by guest cascade; drop role guest")


@pytest.mark.usefixtures("_fake_models")
def test_role_that_does_not_own_the_table_makes_nothing(
    connection: Connection, guest: Connection
) -> None:
    spec = checked(
        PipelineSpec(
            name="reports",
            source=REPORTS,
            target=Table(schema="public", name="reports_chunks"),
            text_fields=("body",),
        )
    )
    message = "do it as the owner of that table.* pgembed enqueue reports finds changes$"
    with pytest.raises(UsageError, match=message):
        create(guest, spec, "fake", sync=True)
    assert pipeline_names(connection) == []
    assert trace(connection) == []
    pipeline = create(guest, spec, "fake").pipeline
    connection.execute("revoke insert on pgembed.work from guest")
    with pytest.raises(UsageError, match=r"insert on pgembed\.work, is missing"):
        install(guest, pipeline)


def test_owner_who_is_no_superuser_captures_what_others_write(
    connection: Connection, guest: Connection
) -> None:
    connection.execute("alter table reports owner to guest")
    pipeline = make_pipeline(connection)
    assert install(guest, pipeline) == [REPORTS]
    set_text(connection, REPORTS, 2, "written by another")
    set_text(guest, REPORTS, 3, "written by the owner")
    connection.execute("truncate reports")
    assert captured(connection) == [SWEEP, "2", "3"]
    assert remove(guest, pipeline)
    assert trace(connection) == []


def test_writer_that_never_ends_is_not_waited_for(
    conninfo: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.02)
    monkeypatch.setattr(locks, "PAUSE_SECONDS", 0.01)
    make_source(connection, texts(1))
    pipeline = make_pipeline(connection)
    with connect(conninfo) as writer:
        writer.execute("begin; update public.reports set body = 'b'")
        with pytest.raises(UsageError, match="reports is used without a pause"):
            install(connection, pipeline)
    assert trace(connection) == []
    install(connection, pipeline)


def test_capture_before_the_scan_leaves_no_gap(conninfo: str, connection: Connection) -> None:
    """A row that is committed behind the cursor of the scan is queued by its trigger."""
    make_source(connection, texts(20))
    pipeline = make_pipeline(connection)
    install(connection, pipeline)
    with connect(conninfo) as writer:
        writer.execute("begin; insert into public.reports values (-1, 'late')")
        enqueue(connection, pipeline, Selection())
        writer.execute("commit")
    with open_session(conninfo) as session:
        drain(session, pipeline)
    assert_converged(connection, "reports")


def test_state_is_read_from_the_catalogue(connection: Connection) -> None:
    make_source(connection, texts(1))
    pipeline: Pipeline = make_pipeline(connection)
    install(connection, pipeline)
    connection.execute("update pgembed.pipelines set name = 'renamed'")
    assert is_on(connection, load_pipeline(connection, "renamed"))
    connection.execute(f"drop function pgembed.capture_{pipeline.id}_row cascade")
    assert not is_on(connection, pipeline)
    install(connection, pipeline)
    assert is_on(connection, pipeline)


def test_capture_is_installed_once_by_two_at_a_time(conninfo: str, connection: Connection) -> None:
    make_source(connection, texts(1))
    pipeline = make_pipeline(connection)

    def install_once(_: int) -> list[Table]:
        with connect(conninfo) as own:
            return install(own, pipeline)

    with ThreadPoolExecutor(4) as threads:
        installed = list(threads.map(install_once, range(8)))
    assert sorted(map(len, installed)) == [0] * 7 + [1]
    assert len(trace(connection)) == 10


@pytest.mark.on_both_servers
def test_triggers_that_were_all_disabled_and_enabled_queue_nothing_twice_and_are_named(
    conninfo: str, connection: Connection
) -> None:
    make_source(connection, texts(1))
    pipeline = make_pipeline(connection)
    install(connection, pipeline)
    connection.execute("alter table reports disable trigger all")
    assert lacking(connection, pipeline) == [REPORTS]
    connection.execute("alter table reports enable trigger all")
    connection.execute("insert into reports select n, 'text' from generate_series(2, 100) as n")
    assert connection.execute("select count(*) from pgembed.work").fetchone() == (1,)
    assert len(captured(connection)) == 99
    assert lacking(connection, pipeline) == []
    row, truncate = sorted(misfiring(connection, pipeline))
    where = "fires in ordinary sessions, not"
    assert row == f"pgembed_1_row on public.reports {where} where changes are replicated"
    assert truncate == f"pgembed_1_truncate on public.reports {where} in all sessions"
    assert row in said(conninfo, "reports")
    assert "triggers on public.reports" in said(conninfo, "reports", "--on")
    assert misfiring(connection, pipeline) == []


MERGE = """
merge into public.docs as docs using (values (2, date '{day}', '{body}')) as new (id, day, body)
    on docs.id = new.id
when matched then update set day = new.day, body = new.body
"""
MOVED, KEPT = MERGE.format(day="2024-01-20", body="a"), MERGE.format(day="2024-02-03", body="b")

# What is executed, and what is queued: keys where PostgreSQL tells the rows.
MOVES = {
    "UPDATE": ("update docs set day = '2024-01-20' where id = 2", '[2, "2024-01-20"]'),
    "MERGE": (MOVED, COMPARISON),
    "MERGE in a function": ("select in_plpgsql()", COMPARISON),
    "MERGE in a function of SQL": ("select in_sql()", COMPARISON),
    "MERGE beside others": (MOVED.replace("docs.id = new.id", "docs.id >= new.id"), COMPARISON),
}


@pytest.mark.on_both_servers
def test_row_that_is_moved_to_another_partition_is_queued(connection: Connection) -> None:
    connection.execute(
        f"""
        create table docs (id int, day date, body text, primary key (id, day))
            partition by range (day);
        create table january partition of docs for values from ('2024-01-01') to ('2024-02-01');
        create table february partition of docs for values from ('2024-02-01') to ('2024-03-01');
        insert into docs values (1, '2024-02-03', 'one'), (2, '2024-02-03', 'two');
        create function in_plpgsql() returns void language plpgsql as $$ begin {MOVED}; end $$;
        create function in_sql() returns void language sql as $$ {MOVED} $$;
        """
    )
    docs = Table(schema="public", name="docs")
    install(connection, make_pipeline(connection, docs, id_fields=("id", "day")))
    connection.execute(KEPT)
    assert captured(connection) == ['[2, "2024-02-03"]']
    queued = {}
    for name, (statement, expected) in MOVES.items():
        with connection.transaction(force_rollback=True):
            connection.execute(statement)
            keys = captured(connection)
            compared = COMPARISON in keys
            queued[name] = expected in keys and compared == (expected == COMPARISON)
    assert queued == dict.fromkeys(MOVES, True)


# On the command line


def test_command_says_what_it_does_and_what_is(conninfo: str, connection: Connection) -> None:
    connection.execute(PARTITIONED)
    make_pipeline(connection)
    off = "changes of public.reports are not captured; pgembed enqueue reports finds them"
    assert off in said(conninfo, "reports")
    assert said(conninfo, "reports", "--off") == "changes of public.reports were not captured\n"
    on = said(conninfo, "reports", "--on")
    assert "triggers on public.reports, public.part_1, public.part_2, public.part_2a" in on
    assert "queued 3 records that were new, had changed or were gone" in on
    assert said(conninfo, "reports", "--on") == "changes of public.reports are captured already\n"
    connection.execute("create table part_3 partition of reports for values from (300) to (400)")
    assert "not what is written straight to public.part_3" in said(conninfo, "reports")
    assert "triggers on public.part_3\n" in said(conninfo, "reports", "--on")
    assert said(conninfo, "reports") == "changes of public.reports are captured\n"
    assert "are no longer captured" in said(conninfo, "reports", "--off")


def said(conninfo: str, *arguments: str) -> str:
    """Return what ``pgembed sync`` says."""
    ran = pgembed(conninfo, "sync", *arguments)
    assert ran.exit_code == 0, ran.error
    return ran.stdout


def test_python_interface_turns_capture_on_and_off(conninfo: str, connection: Connection) -> None:
    make_source(connection, texts(3))
    make_pipeline(connection)
    reports = Database(conninfo).pipeline("reports")
    assert reports.sync() == 3
    assert reports.sync() == 0
    set_text(connection, REPORTS, 4, "new")
    assert reports.progress().pending == 4
    assert reports.sync(on=False) == 0
    assert trace(connection) == []
