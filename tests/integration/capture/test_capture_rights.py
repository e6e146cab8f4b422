"""Rights to turn capture on, the waits of that, and what the commands say of it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from psycopg.conninfo import make_conninfo

from pgqueue_embed import Database
from pgqueue_embed.db import locks
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import UsageError
from pgqueue_embed.lifecycle.create import create
from pgqueue_embed.pipeline.catalog import load_pipeline, pipeline_names
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.pipeline.spec_checks import checked
from pgqueue_embed.queue.capture import install, is_on, lacking, misfiring, remove
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.capturing import COMPARISON, SWEEP, captured, trace
from tests.support.commands import pgembed
from tests.support.corpus import make_source, set_text, texts
from tests.support.oracle import assert_converged
from tests.support.partitioned import PARTITIONED
from tests.support.pipelines import REPORTS, make_pipeline
from tests.support.working import drain, open_session


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


@pytest.mark.usefixtures("fake_models")
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
    "MERGE by its name": ("execute prepared", COMPARISON),
    "MERGE by its name in a function": ("select by_name()", COMPARISON),
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
        prepare prepared as {MOVED};
        create function by_name() returns void language plpgsql
            as $$ begin execute 'execute prepared'; end $$;
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
