"""Vectors that refer to their source: deletes take them along, and lose no re-inserted record."""

from __future__ import annotations

from typing import Any

import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import UsageError
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.pipeline.catalog import load_pipelines
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.target.chunk_table import ChunkTable
from tests.support.corpus import make_source, texts
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.working import drain, embed, embed_documents, open_session, work_once


@pytest.fixture
def reports(connection: Connection, session: Session) -> Pipeline:
    """A pipeline of five records, embedded, whose vectors refer to them."""
    return embed_documents(connection, session, texts(5), foreign_key=True)


def keys(connection: Connection) -> set[Any]:
    """Return the keys of the records that have chunks."""
    return {key for (key,) in connection.execute("select fulltext_id from reports_chunks")}


def test_deleting_a_record_deletes_its_vectors_at_once(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    connection.execute("delete from reports where id < 3")
    assert keys(connection) == {3, 4, 5}
    embed(connection, session, reports)
    assert_converged(connection, "reports")


def test_key_that_changes_takes_its_vectors_along(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    connection.execute("update reports set id = id + 10")
    assert keys(connection) == {11, 12, 13, 14, 15}
    embed(connection, session, reports)
    assert embed(connection, session, reports) == 0
    assert_converged(connection, "reports")


def test_record_deleted_between_re_check_and_write_is_forgotten_not_dead(
    connection: Connection,
    session: Session,
    reports: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    enqueue(connection, reports, Selection(everything=True))
    replace = ChunkTable.replace
    deletions = ["delete from reports where id = 2"]

    def deleted_just_before(*arguments: Any) -> dict[str, str]:
        if deletions:
            connection.execute(deletions.pop())
        return replace(*arguments)

    monkeypatch.setattr(ChunkTable, "replace", deleted_just_before)
    done = work_once(session, reports)
    assert done is not None
    assert (done.commit.failed, done.commit.embedded) == (0, -1)
    drain(session, reports)
    assert connection.execute("select * from pgembed.dead_letters").fetchall() == []
    assert keys(connection) == {1, 3, 4, 5}
    assert_converged(connection, "reports")


def test_writer_who_holds_a_record_is_waited_for(
    conninfo: str, connection: Connection, session: Session, reports: Pipeline
) -> None:
    enqueue(connection, reports, Selection(everything=True))
    waits: list[None] = []
    with connect(conninfo) as writer:
        writer.execute("begin; delete from public.reports where id = 1")

        def checkpoint() -> None:
            waits.append(None)
            if writer.info.transaction_status.name != "IDLE":
                writer.execute("commit")

        with open_session(conninfo) as other:
            object.__setattr__(other, "checkpoint", checkpoint)
            drain(other, reports)
    assert waits
    assert keys(connection) == {2, 3, 4, 5}
    assert_converged(connection, "reports")


@pytest.mark.on_both_servers
def test_partitioned_source_and_composite_key_are_referred_to(
    connection: Connection, session: Session
) -> None:
    connection.execute(
        """
        create table reports (tenant text, day date, body text, primary key (tenant, day))
            partition by list (tenant);
        create table reports_a partition of reports for values in ('a');
        create table reports_b partition of reports for values in ('b');
        insert into reports
        select tenant, date '2024-01-01' + n, 'Report ' || n
        from unnest(array['a', 'b']) as tenant, generate_series(1, 3) as n
        """
    )
    source = Table(schema="public", name="reports")
    pipeline = make_pipeline(connection, source, id_fields=("day", "tenant"), foreign_key=True)
    assert embed(connection, session, pipeline) == 6
    connection.execute("delete from reports_a where day = '2024-01-02'")
    (left,) = connection.execute("select count(*) from reports_chunks").fetchone() or (0,)
    assert left == 5
    embed(connection, session, pipeline)
    assert_converged(connection, "reports")
    drop_pipeline(connection, pipeline, delete_vectors=True)


@pytest.mark.parametrize(
    ("setup", "complaint"),
    [
        ("alter table reports rename to t; create view reports as select * from t", "not a table"),
        (
            "alter table reports drop constraint reports_pkey, add other int default 1;"
            " create unique index on reports (id) include (other)",
            None,
        ),
        (
            "alter table reports drop constraint reports_pkey;"
            " alter table reports add unique (id) deferrable",
            "no unique constraint on exactly id",
        ),
    ],
)
def test_source_that_cannot_be_referred_to_is_refused(
    connection: Connection, setup: str, complaint: str | None
) -> None:
    source = make_source(connection, texts(1))
    connection.execute(setup)
    if complaint is None:
        make_pipeline(connection, source, foreign_key=True)
        return
    with pytest.raises(UsageError, match=complaint):
        make_pipeline(connection, source, foreign_key=True)
    assert load_pipelines(connection) == []
    (table,) = connection.execute("select to_regclass('reports_chunks')").fetchone() or (1,)
    assert table is None


def test_unlogged_source_is_refused_in_one_line(connection: Connection) -> None:
    source = make_source(connection, texts(1))
    connection.execute("alter table reports set unlogged")
    with pytest.raises(UsageError, match=r"cannot create public.reports_chunks: .*permanent"):
        make_pipeline(connection, source, foreign_key=True)
    assert load_pipelines(connection) == []
