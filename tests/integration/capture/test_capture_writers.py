"""Writers need nothing of pgembed, and vectors follow what is written."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.captured import CAPTURED
from tests.support.capturing import SWEEP, captured
from tests.support.oracle import assert_converged
from tests.support.working import drain, open_session

PROGRESS = "select total, done, pending, percent from pgembed.progress"


PREPARED = {"pipeline": CAPTURED}


@pytest.fixture
def writer(conninfo: str, connection: Connection) -> Iterator[Connection]:
    """A role that may write to the tables of schema public, and nothing else."""
    connection.execute("create role plain_writer login password 'of-a-role'")
    connection.execute("grant all on all tables in schema public to plain_writer")
    with connect(make_conninfo(conninfo, user="plain_writer", password="of-a-role")) as session:
        yield session
    connection.execute("drop owned by plain_writer cascade; drop role plain_writer")


@pytest.mark.on_both_servers
def test_writer_needs_no_rights_and_his_search_path_changes_nothing(
    connection: Connection, pipeline: Pipeline, writer: Connection
) -> None:
    del pipeline
    connection.execute("grant all on public.reports to plain_writer")
    connection.execute("create schema evil authorization plain_writer")
    writer.execute(
        """
        create function evil.array_agg(text) returns text[] language sql
            as $$ select null::text[] $$;
        create table evil.work (pipeline_id int, keys text[], records bigint, priority int,
            known boolean);
        create temporary table before (id int);
        create temporary table after (id int);
        create temporary table changed (id int);
        set search_path = evil, pg_temp, public, pg_catalog
        """
    )
    writer.execute("insert into public.reports values (100, 'a')")
    writer.execute("update public.reports set body = 'b' where id = 1")
    writer.execute("delete from public.reports where id = 2")
    writer.execute("truncate public.reports")
    assert writer.execute("select count(*) from evil.work").fetchone() == (0,)
    assert captured(connection) == [SWEEP, "1", "100", "2"]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        writer.execute("select count(*) from pgembed.work")


def test_nobody_else_can_put_a_trigger_function_on_his_own_table(
    connection: Connection, pipeline: Pipeline, writer: Connection
) -> None:
    connection.execute("grant usage on schema pgembed to plain_writer")
    connection.execute("create schema own authorization plain_writer")
    writer.execute("create table own.mine (id int)")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        writer.execute(
            "create trigger t after insert on own.mine referencing new table as changed"
            f" for each statement execute function pgembed.capture_{pipeline.id}_insert()"
        )


def test_progress_counts_captured_changes(
    conninfo: str, connection: Connection, pipeline: Pipeline
) -> None:
    with open_session(conninfo) as session:
        enqueue(connection, pipeline, Selection())
        drain(session, pipeline)
        connection.execute("insert into reports values (10, 'new')")
        assert connection.execute(PROGRESS).fetchone() == (10, 9, 1, 90)
        connection.execute("update reports set body = 'changed' where id = 1")
        assert connection.execute(PROGRESS).fetchone() == (10, 9, 2, 80)
        connection.execute("delete from reports where id = 2")
        assert connection.execute(PROGRESS).fetchone() == (10, 9, 3, 70)
        connection.execute("update reports set id = 30 where id = 3")
        assert connection.execute(PROGRESS).fetchone() == (11, 9, 5, 54.5)
        drain(session, pipeline)
    assert connection.execute(PROGRESS).fetchone() == (9, 9, 0, 100)
    assert_converged(connection, "reports")


def test_vectors_follow_every_change_without_an_enqueue(
    conninfo: str, connection: Connection, pipeline: Pipeline
) -> None:
    with open_session(conninfo) as session:
        enqueue(connection, pipeline, Selection())
        drain(session, pipeline)
        connection.execute("insert into reports values (10, 'new'), (11, null)")
        connection.execute("update reports set body = 'changed' where id = 1")
        connection.execute("update reports set id = 30 where id = 3")
        connection.execute("delete from reports where id = 2")
        drain(session, pipeline)
        assert_converged(connection, "reports")
        connection.execute("truncate reports")
        drain(session, pipeline)
    assert connection.execute("select count(*) from reports_chunks").fetchone() == (0,)
    assert_converged(connection, "reports")


@pytest.mark.parametrize(
    "change", ["rename column body to content", "drop column body cascade"], ids=["rename", "drop"]
)
@pytest.mark.parametrize("role", ["origin", "replica"])
def test_writer_goes_on_when_a_column_that_is_embedded_has_gone(
    connection: Connection, pipeline: Pipeline, change: str, role: str
) -> None:
    connection.execute("update reports set body = 'planned and cached' where id = 1")
    captured(connection)
    connection.execute(f"alter table reports {change}")
    connection.execute(f"set session_replication_role = {role}")
    connection.execute("update reports set other = 7 where id in (2, 3)")
    connection.execute("update reports set id = 40 where id = 4")
    connection.execute("insert into reports (id) values (10)")
    connection.execute("delete from reports where id = 5")
    assert captured(connection) == ["10", "2", "3", "4", "40", "5"]


@pytest.mark.on_both_servers
@pytest.mark.parametrize("change", ["rename column body to content", "drop column body cascade"])
@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_writer_whose_snapshot_is_older_than_that_goes_on_too(
    conninfo: str, connection: Connection, pipeline: Pipeline, change: str, level: str
) -> None:
    del pipeline
    with connect(conninfo) as writer:
        writer.execute(f"begin isolation level {level}")
        writer.execute("select from pgembed.pipelines").fetchall()
        connection.execute(f"alter table reports {change}")
        writer.execute("update public.reports set other = 7 where id = 2")
        writer.execute("commit")
    assert captured(connection) == ["2"]
