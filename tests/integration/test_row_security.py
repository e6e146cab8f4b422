"""Row-level security: rows that a policy hides from pgembed are an error, never deleted records."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.migrate import check_schema, migrate
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.doctor import Mark
from pgqueue_embed.doctor.database import check_migrations
from pgqueue_embed.doctor.pipeline import check_tables
from pgqueue_embed.errors import MigrationError, PipelineFault, UsageError
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support.corpus import make_source, texts
from tests.support.fakes import FakeDevice, unit_vector
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.working import drain, open_session, work_once

RECORDS = 40


@pytest.fixture
def pipeline(
    request: pytest.FixtureRequest, conninfo: str, connection: Connection, embedder: str
) -> Pipeline:
    """A pipeline over ``public.reports``, embedded by the role; with a parameter, in such parts."""
    make_source(connection, texts(RECORDS))
    made = make_pipeline(connection, partition_by=getattr(request, "param", None))
    connection.execute("grant all on reports, reports_chunks to embedder")
    with connect(embedder) as own, open_session(embedder) as session:
        enqueue(own, made, Selection())
        drain(session, made)
    return made


def hide(connection: Connection, table: str = "reports") -> None:
    connection.execute(f"alter table {table} enable row level security")


def vectors(connection: Connection) -> int:
    (number,) = connection.execute("select count(*) from reports_chunks").fetchone() or (0,)
    return int(number)


@pytest.mark.on_both_servers
def test_hidden_source_is_an_error_and_nothing_is_deleted(
    connection: Connection, embedder: str, pipeline: Pipeline
) -> None:
    before = vectors(connection)
    hide(connection)
    with connect(embedder) as own, pytest.raises((psycopg.Error, PipelineFault)) as caught:
        enqueue(own, pipeline, Selection())
    assert "BYPASSRLS" in first_line(caught.value)
    connection.execute(
        "select pgembed.enqueue('reports', (select array_agg(id::text) from reports))"
    )
    with open_session(embedder) as session:
        with pytest.raises(PipelineFault, match=r'"reports"; to pgembed, rows that are hidden'):
            work_once(session, pipeline)
        assert vectors(connection) == before
        connection.execute("alter table reports disable row level security")
        drain(session, pipeline)
    assert_converged(connection, "reports")


def test_source_hidden_while_it_is_embedded_keeps_its_vectors(
    connection: Connection, embedder: str, pipeline: Pipeline
) -> None:
    before = vectors(connection)
    connection.execute("update reports set body = body || ' Changed.'")
    with connect(embedder) as own:
        enqueue(own, pipeline, Selection())
    device = FakeDevice(dimensions=pipeline.dimensions, during=lambda: hide(connection))
    with open_session(embedder) as session, pytest.raises(PipelineFault, match="BYPASSRLS"):
        work_once(session, pipeline, device)
    assert vectors(connection) == before


def test_view_over_hidden_rows_is_an_error_too(
    connection: Connection, embedder: str, pipeline: Pipeline
) -> None:
    drop_pipeline(connection, pipeline, delete_vectors=True)
    connection.execute("alter table reports owner to embedder")
    connection.execute("create view shown as select * from reports; grant all on shown to embedder")
    connection.execute("alter view shown owner to embedder")
    connection.execute("alter table reports force row level security")
    hide(connection)
    with connect(embedder) as own, pytest.raises(UsageError, match="may not read all of"):
        make_pipeline(own, Table(schema="public", name="shown"))


def test_create_refuses_what_is_hidden(
    connection: Connection, embedder: str, pipeline: Pipeline
) -> None:
    drop_pipeline(connection, pipeline, delete_vectors=True)
    hide(connection)
    with (
        connect(embedder) as own,
        pytest.raises(UsageError, match=r"may not read all of .*BYPASSRLS"),
    ):
        make_pipeline(own)


@pytest.mark.parametrize("table", ["reports", "reports_chunks"])
def test_doctor_finds_hidden_rows(
    connection: Connection, embedder: str, pipeline: Pipeline, table: str
) -> None:
    hide(connection, table)
    with connect(embedder) as own:
        (found,) = [each for each in check_tables(own, pipeline) if each.mark is Mark.FAILED]
    assert f'"{table}"' in found.finding
    assert found.fix == "an administrator: alter role embedder bypassrls"


@pytest.mark.parametrize("table", ["pipelines", "work", "records", "_yoyo_migration"])
def test_hidden_table_of_our_own_is_named(
    connection: Connection, embedder: str, pipeline: Pipeline, table: str
) -> None:
    hide(connection, f"pgembed.{table}")
    message = rf"hide rows of pgembed\.{table} .*disable row level security"
    with connect(embedder) as own:
        with pytest.raises(MigrationError, match=message):
            check_schema(own)
        (found,) = check_migrations(own)
    assert found.mark is Mark.FAILED
    assert f"pgembed.{table}" in found.finding
    with pytest.raises(MigrationError, match=message):
        migrate(embedder)


def test_sql_functions_do_not_take_hidden_for_absent(
    connection: Connection, embedder: str, pipeline: Pipeline
) -> None:
    hide(connection, "pgembed.pipelines")
    with psycopg.connect(embedder, autocommit=True) as plain:
        for call in ("pause('reports')", "retry('reports')"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
                plain.execute(f"select pgembed.{call}")


@pytest.mark.parametrize("pipeline", [None, "hash:3"], indirect=True)
def test_search_finds_what_its_role_may_see_and_a_worker_takes_none_for_deleted(
    connection: Connection, embedder: str, pipeline: Pipeline
) -> None:
    connection.execute("update reports set body = body || ' Changed.' where id > 30")
    connection.execute("create index on reports_chunks using hnsw (embedding vector_cosine_ops)")
    hide(connection, "reports_chunks")
    connection.execute("create policy own on reports_chunks using (fulltext_id <= 3)")
    vector = unit_vector("Report 1.")
    with connect(embedder) as own:
        hits = search(own, pipeline, vector, SearchRequest(limit=RECORDS * 10, threshold=-1))
        assert {hit.key for hit in hits} == {1, 2, 3}
        before = vectors(connection)
        connection.execute("select pgembed.enqueue('reports', array['40', '41'])")
        with (
            open_session(embedder) as session,
            pytest.raises(PipelineFault, match=r'"reports_chunks".*rows that are hidden'),
        ):
            work_once(session, pipeline)
    assert vectors(connection) == before


def test_every_session_is_read_committed(conninfo: str) -> None:
    strict = make_conninfo(conninfo, options="-c default_transaction_isolation=serializable")
    isolation = "select current_setting('transaction_isolation')"
    with connect(strict) as session:
        assert session.execute(isolation).fetchone() == ("read committed",)
        with session.transaction():
            assert session.execute(isolation).fetchone() == ("read committed",)
        session.pooled = True
        session.execute("set default_transaction_isolation = serializable")
        assert session.execute(isolation).fetchone() == ("read committed",)
        with session.transaction():
            assert session.execute(isolation).fetchone() == ("read committed",)
            assert session.execute("show row_security").fetchone() == ("off",)
