"""Columns that count were listed when capture was put on, and others may count since."""

from __future__ import annotations

import pytest

from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.queue.capture import install
from tests.support.captured import make_and_install
from tests.support.capturing import captured

ROWS = "insert into reports (id, a, b, c) values (1, 'a', 'b', 'c'), (2, 'a', 'b', 'c')"
VIRTUAL = "body text generated always as (upper(a)) virtual"

# The columns of a table, an alteration of them, and what then counts: a column that did not before.
ALTERATIONS = {
    "expression": (VIRTUAL, "alter body set expression as (upper(a) || b)", "b"),
    "virtual column in place of a plain one": (
        "body text",
        "drop body, add body text generated always as (upper(b)) virtual",
        "b",
    ),
    "plain column in place of a virtual one": (VIRTUAL, "drop body, add body text", "body"),
}


@pytest.mark.parametrize("level", ["read committed", "repeatable read"])
@pytest.mark.parametrize("case", ALTERATIONS.values(), ids=list(ALTERATIONS))
def test_column_that_a_virtual_one_is_made_of_now_is_captured(
    conninfo: str, connection: Connection, case: tuple[str, str, str], level: str
) -> None:
    body, alteration, counts = case
    connection.execute(f"create table reports (id int primary key, a text, b text, c text, {body})")
    connection.execute(ROWS)
    pipeline = make_and_install(connection)
    with connect(conninfo) as writer:
        writer.execute(f"begin isolation level {level}")
        writer.execute("select from pgembed.pipelines").fetchall()
        connection.execute(f"alter table reports {alteration}")
        writer.execute(f"update public.reports set {counts} = 'new' where id = 1")
        writer.execute("commit")
    assert captured(connection) == ["1"]
    install(connection, pipeline)
    connection.execute("update reports set c = 'other'")
    assert captured(connection) == [], "what counts is known again"
    connection.execute(f"update reports set {counts} = 'newer' where id = 2")
    assert captured(connection) == ["2"]


@pytest.mark.on_both_servers
def test_new_column_counts_for_a_condition_that_uses_the_row_as_a_whole(
    connection: Connection,
) -> None:
    connection.execute("create table reports (id int primary key, body text)")
    connection.execute("insert into reports values (1, 'one'), (2, 'two')")
    pipeline = make_and_install(connection, where="source is not null")
    captured(connection)
    connection.execute("alter table reports add other int default 1")
    connection.execute("update reports set other = null where id = 1")
    assert captured(connection) == ["1"]
    install(connection, pipeline)
    connection.execute("update reports set body = body, other = other")
    assert captured(connection) == []
