"""A source that becomes another under capture: workers notice, and have everything compared."""

from __future__ import annotations

from functools import partial

import pytest

from pgqueue_embed.claim import process
from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.capture import install
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.queue.source_comparison import compare_slice
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.prepared import filled_by
from tests.support.working import drain, open_session

SOURCE = """
create type public.mood as enum ('glad', 'sad');
create table public.reports (
    id int primary key, body varchar(200), kind text not null default 'a', mood mood default 'sad'
) partition by list (id);
create table public.part_low partition of reports for values in (1, 2, 3, 4, 5, 6, 7, 8, 9);
create table public.part_high partition of reports default;
create table public.elsewhere (like reports);
insert into reports (id, body) select n, 'Report ' || n from generate_series(1, 40) as n;
insert into elsewhere values (101, 'Out of another table.', 'a', 'sad')
"""
FLAT = """
create table public.others as select id, upper(body) as body, kind, mood from reports;
alter table others add primary key (id)
"""

# What becomes of the source, and whether anything is to be compared. The partitioned source is
# flattened by a swap only.
CHANGES = {
    "type with using": ("alter table reports alter body type text using upper(body)", True),
    "column that was dropped and made again": (
        "alter table reports drop kind, add kind text not null default 'b'",
        True,
    ),
    "columns that swap their names": (
        "alter table reports rename body to old; alter table reports rename kind to body;"
        " alter table reports rename old to kind",
        True,
    ),
    "label that is renamed": ("alter type mood rename value 'sad' to 'low'", True),
    "table that takes the name": (
        FLAT + "; alter table reports rename to former; alter table others rename to reports",
        True,
    ),
    "partition that is attached": (
        "alter table reports detach partition part_high;"
        "alter table reports attach partition elsewhere for values in (101)",
        True,
    ),
    "partition that is detached": ("alter table reports detach partition part_high", True),
    "partition without rows": (
        "create table part_more partition of reports for values in (500)",
        False,
    ),
    "another column": ("alter table reports add column other int default 1", False),
    "rows alone": ("analyze reports", False),
}


def make_embedded(connection: Connection, session: Session) -> None:
    connection.execute(SOURCE)
    made = make_pipeline(connection, template="$body $kind $mood")
    install(connection, made)
    enqueue(connection, made, Selection())
    drain(session, made)


PREPARED = {"pipeline": filled_by(make_embedded)}


@pytest.fixture
def pipeline(connection: Connection) -> Pipeline:
    """A pipeline over ``public.reports`` with capture on, and all its records embedded."""
    return load_pipeline(connection, "reports")


def noticed(connection: Connection) -> list[str]:
    return [name for (name,) in connection.execute("select pgembed.notice_changed_sources()")]


@pytest.mark.on_both_servers
@pytest.mark.parametrize("change", CHANGES)
def test_change_that_no_trigger_tells_of_is_noticed_once_and_leaves_nothing_stale(
    conninfo: str,
    connection: Connection,
    pipeline: Pipeline,
    change: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "compare_slice", partial(compare_slice, slice_records=7))
    statement, matters = CHANGES[change]
    assert noticed(connection) == []
    connection.execute(statement)
    assert noticed(connection) == (["reports"] if matters else [])
    assert noticed(connection) == []
    with open_session(conninfo) as session:
        drain(session, pipeline)
    assert_converged(connection, "reports")
    assert connection.execute("select total, pending from pgembed.progress").fetchone() == (
        connection.execute("select count(*), 0 from reports").fetchone()
    )


# What a column of the condition is of, the condition, and what becomes of it.
MADE_OF = {
    "array of an enum": ("mood[] default '{sad}'", "'sad' = any(value::text[])", "rename"),
    "domain over such arrays": ("moods default '{sad}'", "value[1]::text = 'sad'", "rename"),
    "row type with an enum": ("pair default (1, 'sad')", "(value).mood::text = 'sad'", "rename"),
    "array of row types": (
        "pair[] default array[(1, 'sad')::pair]",
        "value[1]::text = '(1,sad)'",
        "rename",
    ),
    "range": ("between_moods default '[glad,sad]'", "upper(value)::text = 'sad'", "rename"),
    "row type that loses an attribute": (
        "pair default (1, 'sad')",
        "value::text = '(1,sad)'",
        "drop",
    ),
}
CHANGES_OF_TYPE = {
    "rename": "alter type mood rename value 'sad' to 'low'",
    "drop": "alter type pair drop attribute number cascade",
}


@pytest.mark.parametrize("made_of", MADE_OF)
def test_change_of_a_type_beneath_that_of_a_column_is_noticed(
    connection: Connection, session: Session, made_of: str
) -> None:
    type_, condition, change = MADE_OF[made_of]
    connection.execute("create type mood as enum ('glad', 'sad')")
    connection.execute("create type pair as (number int, mood mood)")
    connection.execute("create domain moods as mood[]")
    connection.execute("create type between_moods as range (subtype = mood)")
    connection.execute(f"create table reports (id int primary key, body text, value {type_})")
    connection.execute("insert into reports select n, 'Report ' || n from generate_series(1, 9) n")
    made = make_pipeline(connection, where=condition)
    install(connection, made)
    assert enqueue(connection, made, Selection()) == 9
    drain(session, made)
    assert noticed(connection) == []
    connection.execute(CHANGES_OF_TYPE[change])
    assert noticed(connection) == ["reports"]
    drain(session, made)
    assert_converged(connection, "reports")


def test_comparison_finds_a_change_behind_and_before_its_cursor(
    conninfo: str,
    connection: Connection,
    pipeline: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "compare_slice", partial(compare_slice, slice_records=7))
    connection.execute("select pgembed.queue_comparison(%s)", (pipeline.id,))
    with open_session(conninfo) as session:
        batch_ = drain(session, pipeline)
        assert not any(each.commit.chunks for each in batch_), "nothing was embedded again"
        connection.execute("alter table reports disable trigger all")
        connection.execute("update reports set body = 'changed' where id in (1, 40)")
        connection.execute("delete from reports where id in (2, 39)")
        connection.execute("insert into reports values (200, 'new')")
        connection.execute("select pgembed.queue_comparison(%s)", (pipeline.id,))
        drain(session, pipeline)
    assert_converged(connection, "reports")


def test_comparisons_that_wait_are_one(connection: Connection, pipeline: Pipeline) -> None:
    for _ in range(3):
        connection.execute("select pgembed.queue_comparison(%s)", (pipeline.id,))
    assert connection.execute("select count(*) from pgembed.work").fetchone() == (1,)
