"""Tables with triggers of capture, what takes these away, and who may not have them."""

from __future__ import annotations

import threading

import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.doctor.pipeline import check_capture
from pgqueue_embed.lifecycle.alter import Changes, abort, alter, catch_up
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.lifecycle.sync import queue_missed, start_capture, stop_capture
from pgqueue_embed.queue.capture import install, is_on, lacking, remove
from pgqueue_embed.queue.captured_columns import captured_columns
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.capturing import SWEEP, captured, trace
from tests.support.conditions import wait_until_blocked
from tests.support.corpus import make_source, set_text, texts
from tests.support.oracle import assert_converged
from tests.support.partitioned import PARTITIONED
from tests.support.pipelines import REPORTS, make_pipeline
from tests.support.working import drain, open_session


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


# A statement that names the table above fires no trigger of statements on the source.
PARTS = {
    "partition": """
        create table whole (id int, day int, body text) partition by list (day);
        create table other_day partition of whole for values in (2);
        create table reports partition of whole for values in (1);
        create unique index on reports (id)
    """,
    "partition in parts": """
        create table whole (id int, day int, body text) partition by list (day);
        create table other_day partition of whole for values in (2);
        create table reports partition of whole for values in (1) partition by range (id);
        create table reports_1 partition of reports for values from (0) to (3);
        create table reports_2 partition of reports for values from (3) to (99);
        create unique index on reports (id)
    """,
}

WRITES = (
    ("insert into whole values (1, 1, 'a'), (2, 1, 'b'), (3, 1, 'c'), (9, 2, 'x')", "1", "2", "3"),
    ("update whole set body = 'changed' where id in (1, 9)", "1"),
    ("update whole set body = body",),
    ("update whole set id = 4 where id = 2", "2", "4"),
    ("update whole set day = 2 where id = 4", "4"),
    ("update whole set day = 1 where id = 9", "9"),
    ("delete from whole where id = 9", "9"),
    ("update reports set body = 'straight' where id = 3", "3"),
    ("truncate whole", SWEEP),
)


@pytest.mark.on_both_servers
@pytest.mark.parametrize("role", ["origin", "replica"])
@pytest.mark.parametrize("tables", PARTS.values(), ids=list(PARTS))
def test_source_that_is_a_part_of_another_table_is_captured_whichever_is_written_to(
    connection: Connection, tables: str, role: str
) -> None:
    connection.execute(tables)
    install(connection, make_pipeline(connection))
    connection.execute(f"set session_replication_role = {role}")
    queued = []
    for statement, *_ in WRITES:
        connection.execute(statement)
        queued.append(sorted(set(captured(connection))))
    assert queued == [sorted(keys) for _, *keys in WRITES]


def test_vectors_follow_a_source_that_inherits(connection: Connection, session: Session) -> None:
    connection.execute(
        """
        create table base (id int, body text);
        create table reports (primary key (id)) inherits (base)
        """
    )
    pipeline = make_pipeline(connection)
    install(connection, pipeline)
    connection.execute("insert into reports values (1, 'one'), (2, 'two'), (3, 'three')")
    drain(session, pipeline)
    connection.execute("update base set body = 'changed' where id = 1")
    connection.execute("delete from base where id = 2")
    drain(session, pipeline)
    assert_converged(connection, "reports")


def test_source_that_is_attached_to_a_table_is_named_until_capture_is_put_on_it_again(
    connection: Connection,
) -> None:
    make_source(connection, texts(2))
    pipeline = make_pipeline(connection)
    install(connection, pipeline)
    connection.execute(
        """
        create table whole (id bigint not null, body text) partition by range (id);
        alter table whole attach partition reports for values from (0) to (99)
        """
    )
    (check,) = check_capture(connection, pipeline)
    assert check.fix == "pgembed sync reports --on"
    assert start_capture(connection, pipeline) == [REPORTS]
    assert start_capture(connection, pipeline) == []
    connection.execute("update whole set body = 'changed' where id = 1")
    assert captured(connection) == ["1"], "and by no trigger of before as well"
    connection.execute("alter table whole detach partition reports")
    assert lacking(connection, pipeline) == [REPORTS]
    assert start_capture(connection, pipeline) == [REPORTS]
    connection.execute("update reports set body = 'again'")
    assert captured(connection) == ["1", "2"]
    assert connection.execute("select count(*) from pgembed.work").fetchone() == (0,)
    remove(connection, pipeline)
    assert trace(connection) == []


def test_row_that_leaves_the_partition_of_the_condition_is_queued(connection: Connection) -> None:
    connection.execute(
        """
        create table reports (id int, day int, body text, other int, primary key (id, day))
            partition by list (day);
        create table part_1 partition of reports for values in (1);
        create table part_2 partition of reports for values in (2);
        """
    )
    pipeline = make_pipeline(
        connection, id_fields=("id", "day"), where="tableoid = 'public.part_1'::regclass"
    )
    assert "other" in captured_columns(connection, pipeline).names


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


@pytest.mark.usefixtures("fake_models")
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


@pytest.mark.usefixtures("fake_models")
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


@pytest.mark.usefixtures("fake_models")
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
