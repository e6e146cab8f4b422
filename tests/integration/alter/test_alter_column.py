"""Altering a pipeline whose vectors are in a column of the source: by a second column."""

from __future__ import annotations

from contextlib import suppress

import psycopg
import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import UsageError
from pgqueue_embed.lifecycle.alter import Changes, abort, alter
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.lifecycle.sync import start_capture
from pgqueue_embed.pipeline.catalog import is_current, load_pipeline, load_pipelines
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.vector_search.index import plan, vector_indexes
from pgqueue_embed.vector_search.index_build import build_index
from pgqueue_embed.vector_search.index_plan import IndexOptions
from tests.support.altering import once_an_index_is_built, unusable
from tests.support.altering_columns import (
    COLUMN_EMBEDDED,
    OTHER_MODEL,
    assert_column_converged_in,
    begin,
    dimensions,
    embed,
    shape,
)
from tests.support.columns import assert_column_converged, into_column
from tests.support.conditions import terminate
from tests.support.corpus import make_source, set_text, texts

pytestmark = pytest.mark.usefixtures("fake_next_model", "quick_switch")


PREPARED = {"reports": COLUMN_EMBEDDED}


@pytest.mark.on_both_servers
def test_new_vectors_take_the_place_of_the_old_column(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    build_index(connection, reports, plan(connection, reports, IndexOptions(m=8)))
    connection.execute("comment on column reports.embedding is 'What it is about.'")
    connection.execute("grant select (embedding) on reports to public")
    before = shape(connection)
    successor = begin(connection, reports)
    assert (successor.spec.into_column, successor.dimensions) == ("embedding_next", 4)
    assert dimensions(connection) == {8}
    embed(session, successor)
    switched = switch(connection, reports)
    assert (switched.id, switched.name) == (successor.id, "reports")
    assert (switched.spec.into_column, switched.spec.columns.embedding) == (
        "embedding",
        "embedding",
    )
    assert shape(connection) == [
        tuple("vector(4)" if each == "vector(8)" else each for each in row) for row in before
    ]
    assert [index.valid for index in vector_indexes(connection, switched)] == [True]
    assert_column_converged_in(connection, switched)
    assert not is_current(connection, successor)
    set_text(connection, reports.source, 3, "changed after the switch")
    enqueue(connection, switched, Selection())
    embed(session, switched)
    assert_column_converged_in(connection, switched)


def test_switch_that_was_killed_while_it_built_an_index_is_done_by_the_next(
    conninfo: str, connection: Connection, session: Session, reports: Pipeline
) -> None:
    with suppress(psycopg.errors.UniqueViolation):
        connection.execute("create unique index concurrently theirs on reports ((1))")
    build_index(connection, reports, plan(connection, reports, IndexOptions()))
    embed(session, begin(connection, reports))
    ends = lambda pid: terminate(connection, pid)  # noqa: E731
    with (
        connect(conninfo) as other,
        once_an_index_is_built(conninfo, ends),
        pytest.raises(UsageError, match=r"cannot build index .*: terminating connection"),
    ):
        switch(other, reports)
    assert len(unusable(connection)) == 2
    switched = switch(connection, reports)
    assert [index.valid for index in vector_indexes(connection, switched)] == [True]
    assert unusable(connection) == ["theirs"]


@pytest.mark.parametrize("quantize", ["halfvec", "binary"])
def test_an_index_of_smaller_vectors_is_carried_along(
    connection: Connection, session: Session, reports: Pipeline, quantize: str
) -> None:
    build_index(connection, reports, plan(connection, reports, IndexOptions(quantize=quantize)))
    (before,) = vector_indexes(connection, reports)
    successor = begin(connection, reports)
    embed(session, successor)
    assert vector_indexes(connection, switch(connection, reports)) == [before]


def test_second_change_follows_the_first(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    embed(session, begin(connection, reports))
    switched = switch(connection, reports)
    embed(session, begin(connection, switched, Changes(vector_type="halfvec")))
    again = switch(connection, switched)
    assert again.spec.vector_type == "halfvec"
    assert_column_converged_in(connection, again)


def test_switch_leaves_capture_on(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    start_capture(connection, reports)
    successor = begin(connection, reports)
    start_capture(connection, reports)
    embed(session, successor)
    switched = switch(connection, reports)
    connection.execute("update reports set body = 'captured' where id = 2")
    embed(session, switched)
    assert_column_converged_in(connection, switched)


def test_change_that_is_given_up_leaves_nothing(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    before = shape(connection)
    embed(session, begin(connection, reports))
    abort(connection, reports)
    assert shape(connection) == before
    assert load_pipelines(connection) == [reports]
    assert_column_converged(connection, reports)


def test_settings_that_leave_vectors_alone_change_at_once(
    connection: Connection, reports: Pipeline
) -> None:
    before = shape(connection)
    assert alter(connection, reports, Changes(name="letters", priority=30)) is None
    assert load_pipeline(connection, "letters").spec.into_column == "embedding"
    assert shape(connection) == before


def test_row_has_no_room_for_chunks(connection: Connection, reports: Pipeline) -> None:
    with pytest.raises(UsageError, match="room for one vector"):
        alter(connection, reports, Changes(chunking="tokens", chunk_tokens=16))


def test_column_that_is_nobodys_next_generation_is_left_alone(
    connection: Connection, reports: Pipeline
) -> None:
    connection.execute("alter table reports add embedding_next vector(4)")
    before = shape(connection)
    with pytest.raises(UsageError, match=r"reports\.embedding_next is there already"):
        alter(connection, reports, OTHER_MODEL)
    assert shape(connection) == before
    assert load_pipelines(connection) == [reports]


def test_users_own_column_stays_when_its_pipeline_is_dropped_after_a_switch(
    connection: Connection, session: Session
) -> None:
    make_source(connection, texts(3))
    connection.execute("alter table reports add embedding vector(8)")
    pipeline = into_column(connection)
    enqueue(connection, pipeline, Selection())
    embed(session, pipeline)
    embed(session, begin(connection, pipeline))
    switched = switch(connection, pipeline)
    drop_pipeline(connection, switched, delete_vectors=True)
    assert ("embedding", "vector(4)") in {each[:2] for each in shape(connection)}
    assert dimensions(connection) == set()


def test_condition_that_names_the_column_is_refused(
    connection: Connection, reports: Pipeline
) -> None:
    """The next column takes its name at the switch."""
    with pytest.raises(UsageError, match="--where names embedding, which the vectors go into"):
        alter(connection, reports, Changes(where="embedding is null"))
    assert load_pipelines(connection) == [reports]


class TestViews:
    """Views that read the column read the new one, or keep the switch from happening."""

    def test_views_show_the_new_vectors(
        self, connection: Connection, session: Session, reports: Pipeline
    ) -> None:
        connection.execute("create view bare as select id, body from reports")
        connection.execute("create view vectors as select id, embedding from reports")
        connection.execute("create view of_view as select embedding from vectors")
        first = connection.execute("select embedding::text from of_view order by 1").fetchall()
        embed(session, begin(connection, reports, Changes(template="$body, once more")))
        switch(connection, reports)
        second = connection.execute("select embedding::text from of_view order by 1").fetchall()
        stored = connection.execute("select embedding::text from reports order by 1").fetchall()
        assert second == stored
        assert second != first
        assert len(connection.execute("select from bare").fetchall()) == 21

    @pytest.mark.parametrize(
        ("statement", "complaint"),
        [
            ("create view v as select embedding from reports", "view public.v cannot read"),
            ("create view v as select * from reports", "view public.v cannot read"),
            (
                "create materialized view v as select embedding from reports",
                "materialized view public.v reads",
            ),
            ("create index on reports (body, embedding)", "has index reports_body_embedding_idx"),
            (
                "create index on reports using hnsw (embedding vector_l2_ops) where id > 3",
                "has index",
            ),
            ("create index on reports (vector_dims(embedding))", "has index"),
            (
                "alter table reports add constraint c check (vector_dims(embedding) = 8)",
                "has constraint c",
            ),
            (
                "alter table reports add dims int generated always as"
                " (public.vector_dims(embedding)) stored",
                "has .*dims",
            ),
            (
                "create trigger t after update of embedding on reports for each row"
                " execute function suppress_redundant_updates_trigger()",
                "has trigger t on",
            ),
            ("create publication p for table reports (id, embedding)", "has publication"),
        ],
    )
    def test_what_cannot_be_carried_over_is_refused_in_one_line_and_left(
        self,
        connection: Connection,
        session: Session,
        reports: Pipeline,
        statement: str,
        complaint: str,
    ) -> None:
        embed(session, begin(connection, reports))
        connection.execute(statement)
        before = shape(connection)
        with pytest.raises(UsageError, match=complaint) as refused:
            switch(connection, reports)
        assert "\n" not in str(refused.value)
        assert shape(connection) == before
        assert dimensions(connection) == {8}


def test_view_that_reads_the_next_column_keeps_it_from_being_dropped(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    embed(session, begin(connection, reports))
    connection.execute("create view v as select * from reports")
    with pytest.raises(UsageError, match=r"reports\.embedding_next is used: view v depends on"):
        abort(connection, reports)
    connection.execute("drop view v")
    abort(connection, reports)
    assert_column_converged(connection, reports)
