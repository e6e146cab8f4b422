"""The view of a source and its chunks: made, renewed and dropped with the table, rights and all."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.doctor.pipeline import check_tables
from pgqueue_embed.errors import UsageError
from pgqueue_embed.lifecycle.alter import Changes, abort, alter, catch_up
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.pipeline.catalog import load_pipeline, load_pipelines
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.commands import pgembed
from tests.support.corpus import make_source, texts
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.prepared import filled_by
from tests.support.working import drain, embed

VIEW = "reports_chunks_view"


pytestmark = pytest.mark.usefixtures("fake_next_model")


def make_reports(connection: Connection, session: Session) -> None:
    source = make_source(connection, texts(5))
    connection.execute('alter table reports add "per % ""cent""" int default 7, add tokens text')
    pipeline = make_pipeline(connection, source, view=True)
    embed(connection, session, pipeline)


PREPARED = {"reports": filled_by(make_reports)}


@pytest.fixture
def reports(connection: Connection) -> Pipeline:
    """A pipeline of five records, embedded, with a view of columns with odd names."""
    return load_pipeline(connection, "reports")


@pytest.fixture
def roles(connection: Connection) -> Iterator[None]:
    """The roles reader and keeper, who own and may nothing yet."""
    connection.execute("create role reader; create role keeper")
    connection.execute("grant create on schema public to keeper")
    yield
    connection.execute("reassign owned by reader, keeper to current_user")
    connection.execute("drop owned by reader, keeper; drop role reader, keeper")


def columns(connection: Connection) -> list[str]:
    """Return the columns of the view."""
    cursor = connection.execute(f"select * from {VIEW} limit 0")
    return [column.name for column in cursor.description or ()]


def relations(connection: Connection) -> set[str]:
    """Return the names of all tables and views of the test."""
    rows = connection.execute(
        "select relname from pg_class where relnamespace = 'public'::regnamespace"
        " and relkind in ('r', 'v')"
    )
    return {name for (name,) in rows}


def replace_generation(
    connection: Connection, session: Session, pipeline: Pipeline, changes: Changes
) -> Pipeline:
    """Make a next generation, embed it, and switch to it."""
    successor = alter(connection, pipeline, changes)
    assert successor is not None
    assert "reports_chunks_next_view" not in relations(connection)
    catch_up(connection, pipeline, successor)
    drain(session, successor)
    return switch(connection, pipeline)


@pytest.mark.on_both_servers
def test_view_joins_each_chunk_with_its_record(connection: Connection, reports: Pipeline) -> None:
    assert columns(connection)[:2] == ["body", 'per % "cent"']
    assert columns(connection)[2:4] == ["id", "fulltext_id"]
    are_slices = "bool_and(substr(body, start_char + 1, length(text_chunk)) = text_chunk)"
    are_all = "count(*) = (select count(*) from reports_chunks)"
    query = f"select {are_slices}, {are_all} from {VIEW}"
    assert connection.execute(query).fetchone() == (True, True)
    (options, comment) = connection.execute(
        f"select reloptions, obj_description(oid) from pg_class where oid = '{VIEW}'::regclass"
    ).fetchone() or (None, None)
    assert options == ["security_invoker=true"]
    assert "records of public.reports" in comment
    drop_pipeline(connection, reports, delete_vectors=True)
    assert relations(connection) == {"reports"}


def test_vectors_that_are_kept_keep_their_view(connection: Connection, reports: Pipeline) -> None:
    drop_pipeline(connection, reports, delete_vectors=False)
    assert VIEW in relations(connection)


@pytest.mark.on_both_servers
@pytest.mark.parametrize(
    "changes",
    [
        Changes(chunk_tokens=8, overlap_tokens=0, view=True),
        Changes(model="another/model"),
        Changes(copy_columns=("body",), foreign_key=True),
        Changes(vector_type="halfvec", truncate_dim=4),
    ],
)
def test_view_is_of_the_new_generation_with_the_rights_of_before(
    connection: Connection,
    session: Session,
    reports: Pipeline,
    roles: None,
    changes: Changes,
) -> None:
    connection.execute(f"alter view {VIEW} owner to keeper")
    connection.execute(f"grant select (text_chunk) on {VIEW} to reader")
    connection.execute(f"grant insert on {VIEW} to public")
    rights = (
        "select pg_get_userbyid(relowner), relacl::text, attacl::text from pg_class"
        " join pg_attribute on attrelid = pg_class.oid and attname = 'text_chunk'"
        f" where relname = '{VIEW}'"
    )
    before = connection.execute(rights).fetchone()
    switched = replace_generation(connection, session, reports, changes)
    assert switched.spec.view
    assert connection.execute(rights).fetchone() == before
    (all_there,) = connection.execute(
        f"select count(*) = (select count(*) from reports_chunks) from {VIEW}"
    ).fetchone() or (False,)
    assert all_there
    assert relations(connection) == {"reports", "reports_chunks", VIEW}
    assert_converged(connection, "reports")
    drop_pipeline(connection, switched, delete_vectors=True)
    assert relations(connection) == {"reports"}


def test_copied_columns_and_foreign_key_come_and_go_with_generations(
    connection: Connection, session: Session
) -> None:
    source = make_source(connection, texts(5))
    pipeline = make_pipeline(connection, source, copy_columns=("body",), foreign_key=True)
    enqueue(connection, pipeline, Selection())
    drain(session, pipeline)
    for changes in (
        Changes(chunk_tokens=8, overlap_tokens=0),
        Changes(copy_columns=(), foreign_key=False),
        Changes(copy_columns=("body",)),
        Changes(foreign_key=True),
    ):
        pipeline = replace_generation(connection, session, pipeline, changes)
        assert_converged(connection, "reports")
    assert (pipeline.spec.copy_columns, pipeline.spec.foreign_key) == (("body",), True)
    with pytest.raises(UsageError, match="like that already"):
        alter(connection, pipeline, Changes(copy_columns=("body",), foreign_key=True))


def test_view_comes_goes_and_is_renewed_at_once(connection: Connection, reports: Pipeline) -> None:
    connection.execute(
        "alter table reports add later int; grant select on reports_chunks_view to public"
    )
    assert alter(connection, reports, Changes(view=True)) is None
    assert "later" in columns(connection)
    (readable,) = connection.execute(
        f"select relacl::text like '%=r/%' from pg_class where relname = '{VIEW}'"
    ).fetchone() or (False,)
    assert readable
    assert alter(connection, reports, Changes(view=False, priority=3)) is None
    assert VIEW not in relations(connection)
    connection.execute("alter table reports drop column later")
    altered = load_pipeline(connection, "reports")
    assert (altered.spec.view, altered.spec.priority) == (False, 3)
    alter(connection, altered, Changes(view=True))
    assert VIEW in relations(connection)
    with pytest.raises(psycopg.errors.DependentObjectsStillExist):
        connection.execute("alter table reports drop column body")


def test_view_that_was_dropped_is_told_of_and_made_again(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    connection.execute(f"drop view {VIEW}")
    (check,) = [each for each in check_tables(connection, reports) if "view" in each.finding]
    assert check.finding == "the view public.reports_chunks_view is gone"
    replace_generation(connection, session, reports, Changes(chunk_tokens=8, overlap_tokens=0))
    assert VIEW in relations(connection)


def test_name_that_is_taken_is_refused_in_one_line(connection: Connection) -> None:
    source = make_source(connection, texts(1))
    connection.execute(f"create table {VIEW} ()")
    with pytest.raises(UsageError, match=r"--view: public\.reports_chunks_view exists already"):
        make_pipeline(connection, source, view=True)
    assert load_pipelines(connection) == []
    pipeline = make_pipeline(connection, source)
    with pytest.raises(UsageError, match=r"--view: public\.reports_chunks_view exists already"):
        alter(connection, pipeline, Changes(view=True))
    assert not load_pipeline(connection, "reports").spec.view


def test_view_of_a_person_upon_ours_is_never_dropped(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    connection.execute(f"create view mine as select text_chunk from {VIEW}")
    switched = replace_generation(
        connection, session, reports, Changes(chunk_tokens=8, overlap_tokens=0)
    )
    assert connection.execute("select count(*) > 5 from mine").fetchone() == (True,)
    successor = alter(connection, switched, Changes(model="another/model"))
    assert successor is not None
    catch_up(connection, switched, successor)
    drain(session, successor)
    with pytest.raises(UsageError, match=r"cannot be replaced: view public\.mine depends on"):
        switch(connection, switched)
    with pytest.raises(UsageError, match="_view is used: view mine depends on"):
        alter(connection, switched, Changes(view=False))
    assert columns(connection)
    abort(connection, switched)
    assert relations(connection) == {"reports", "reports_chunks", VIEW, "mine"}


def test_reader_of_the_view_needs_rights_on_the_source(
    conninfo: str, connection: Connection, reports: Pipeline, roles: None
) -> None:
    connection.execute(f"grant select on {VIEW} to reader")
    with connect(conninfo) as own:
        own.execute("set role reader")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            own.execute(f"select * from public.{VIEW}")


def test_command_alters_the_options_of_a_target_table(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    assert pgembed(conninfo, "alter", "reports", "--no-view").exit_code == 0
    assert VIEW not in relations(connection)
    ran = pgembed(conninfo, "alter", "reports", "--view", "--copy-columns", "body,absent")
    assert "no column 'absent'" in str(ran.error)
    assert VIEW not in relations(connection)
    options = ("--view", "--copy-columns", "body", "--foreign-key", "--truncate-dim", "4")
    ran = pgembed(conninfo, "alter", "reports", *options)
    assert "public.reports_chunks_next (vector(4)" in ran.stdout
    assert VIEW in relations(connection)
    successor = load_pipeline(connection, "reports (next)")
    assert (successor.spec.copy_columns, successor.spec.foreign_key) == (("body",), True)
