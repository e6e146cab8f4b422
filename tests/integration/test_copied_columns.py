"""Columns of the source beside each chunk: of any plain type, never stale, nulls included."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import sql

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.catalog import load_pipelines
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.target_columns import TargetColumns
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.target.chunk_table import ChunkTable
from tests.support import working
from tests.support.corpus import make_source, texts
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.working import drain, work_once


def embed(connection: Connection, session: Session, pipeline: Pipeline) -> int:
    """Embed what is new or changed, and look at it; returns how many records were queued."""
    queued = working.embed(connection, session, pipeline)
    assert_copied(connection, pipeline)
    return queued


def assert_copied(connection: Connection, pipeline: Pipeline) -> None:
    """Fail unless each chunk has the values that its record has now."""
    columns = [sql.Identifier(name) for name in pipeline.spec.copy_columns]
    query = sql.SQL(
        "select target.id from {target} as target join {source} as source"
        " on source.id = target.fulltext_id where {differ}"
    ).format(
        target=pipeline.target.identifier,
        source=pipeline.source.identifier,
        differ=sql.SQL(" or ").join(
            sql.SQL("target.{0}::text is distinct from source.{0}::text").format(column)
            for column in columns
        ),
    )
    assert connection.execute(query).fetchall() == []


# For each type, SQL for the value of the record with a number `id`.
TYPES = {
    "boolean": "id > 1",
    "numeric(12,4)": "id / 3.0",
    "double precision": "id / 3.0",
    "character(9)": "'n' || id",
    "character varying(40)": "'naïve, \"n\" ' || id",
    "timestamp with time zone": "timestamptz '2024-03-31 01:30:00.123456+02' + id * interval '1 h'",
    "date": "date '0044-03-15 BC' + id::integer",
    "text[]": "array['a, b', null, id::text, '{}']",
    "jsonb": "jsonb_build_object('n', id)",
    "inet": "inet '10.0.0.0' + id",
    "zip": "'0' || id",
    '"odd % type"': "'glad'",
}


@pytest.mark.on_both_servers
def test_values_of_every_plain_type_are_copied(connection: Connection, session: Session) -> None:
    source = make_source(connection, texts(3))
    connection.execute("create domain zip as varchar(9)")
    connection.execute("""create type "odd % type" as enum ('glad')""")
    names = tuple(TYPES)
    for name, value in TYPES.items():
        quoted = sql.Identifier(name.replace("%", "percent"))
        add, fill = sql.SQL("alter table reports add {} {}"), sql.SQL("update reports set {} = {}")
        connection.execute(add.format(quoted, sql.SQL(name)))
        connection.execute(fill.format(quoted, sql.SQL(value)))
    names = tuple(name.replace("%", "percent") for name in TYPES)
    pipeline = make_pipeline(connection, source, copy_columns=names)
    session.side.execute("set datestyle = 'German'; set timezone = 'Asia/Kathmandu'")
    assert embed(connection, session, pipeline) == 3
    assert embed(connection, session, pipeline) == 0
    types = dict(
        connection.execute(
            "select attname, format_type(atttypid, atttypmod) from pg_attribute"
            " where attrelid = 'reports_chunks'::regclass"
        ).fetchall()
    )
    limitless = {"numeric(12,4)": "numeric", "character(9)": "bpchar"}
    limitless |= {"character varying(40)": "character varying", "zip": "character varying"}
    limitless |= {'"odd percent type"': '"odd % type"'}
    assert {name: types[name] for name in names} == {
        name: limitless.get(name, name) for name in names
    }


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("{null}", "{}"),
        ("{''}", "{null}"),
        ('{"NULL"}', "{null}"),
        ('{"a, b"}', "{a,b}"),
        ("{a,b}", "{ab}"),
    ],
)
def test_change_of_a_copied_column_alone_writes_the_record_anew(
    connection: Connection, session: Session, before: str, after: str
) -> None:
    source = make_source(connection, texts(3))
    connection.execute("alter table reports add tags text[], add tag text")
    pipeline = make_pipeline(connection, source, copy_columns=("tag", "tags"))
    connection.execute("update reports set tags = %s, tag = '1'", (before,))
    assert embed(connection, session, pipeline) == 3
    connection.execute("update reports set tags = %s where id = 2", (after,))
    assert embed(connection, session, pipeline) == 1
    assert_converged(connection, "reports")


@pytest.mark.parametrize("values", [(None, ""), ("", None), ("x", None), ("NULL", None)])
def test_null_is_no_empty_text_and_no_word(
    connection: Connection, session: Session, values: tuple[str | None, str | None]
) -> None:
    source = make_source(connection, texts(2))
    connection.execute("alter table reports add tag text, add other text")
    pipeline = make_pipeline(
        connection, source, copy_columns=("tag", "other"), chunk_template="<$tag>: $chunk"
    )
    for tag, other in (values, values[::-1]):
        connection.execute("update reports set tag = %s, other = %s where id = 1", (tag, other))
        embed(connection, session, pipeline)
        assert embed(connection, session, pipeline) == 0
        assert_converged(connection, "reports")


@pytest.mark.parametrize(
    "change",
    [
        "update reports set tag = 'new' where id = 2",
        "update reports set body = 'Another text.' where id = 2",
        "delete from reports where id = 2",
    ],
)
def test_change_between_re_check_and_write_is_not_mixed_with_what_was_read(
    connection: Connection, session: Session, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    source = make_source(connection, texts(3))
    connection.execute("alter table reports add tag text default 'old'")
    pipeline = make_pipeline(connection, source, copy_columns=("tag",))
    embed(connection, session, pipeline)
    enqueue(connection, pipeline, Selection(everything=True))
    changes = [change]
    insert = ChunkTable.insert

    def changed_just_before(*arguments: Any) -> tuple[set[str], int]:
        if changes:
            connection.execute(changes.pop())
        return insert(*arguments)

    monkeypatch.setattr(ChunkTable, "insert", changed_just_before)
    done = work_once(session, pipeline)
    assert done is not None
    assert (done.commit.failed, changes) == (0, [])
    drain(session, pipeline)
    assert_copied(connection, pipeline)
    assert_converged(connection, "reports")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"copy_columns": ("absent",)}, "no column 'absent'"),
        ({"copy_columns": ("price",)}, "depends on a session's settings"),
        ({"copy_columns": ("body", "body")}, "names 'body' twice"),
        ({"copy_columns": ("id",)}, "the target table has a column of that name"),
        (
            {"copy_columns": ("body",), "into_column": "v", "chunking": "none"},
            "--copy-columns belongs to a target table",
        ),
    ],
)
def test_columns_that_cannot_be_copied_are_refused(
    connection: Connection, fields: dict[str, Any], complaint: str
) -> None:
    source = make_source(connection, texts(1))
    connection.execute("alter table reports add price money")
    with pytest.raises(UsageError, match=complaint):
        make_pipeline(connection, source, **fields)
    assert load_pipelines(connection) == []


def test_copied_column_may_be_called_as_any_column_that_is_renamed(
    connection: Connection, session: Session
) -> None:
    source = make_source(connection, texts(2))
    connection.execute("alter table reports add tokens text default 'a', add key text default 'b'")
    connection.execute("alter table reports add chunk_index int")
    columns = TargetColumns(tokens="n", chunk_index="i")
    names = ("tokens", "key", "chunk_index", "body")
    pipeline = make_pipeline(connection, source, columns=columns, copy_columns=names)
    assert embed(connection, session, pipeline) == 2
    assert_converged(connection, "reports")


def test_two_hundred_columns_are_copied(connection: Connection, session: Session) -> None:
    source = make_source(connection, texts(2))
    names = tuple(f"c{number}" for number in range(200))
    added = ", ".join(f"add {name} int default {number}" for number, name in enumerate(names))
    connection.execute(f"alter table reports {added}")
    pipeline = make_pipeline(connection, source, copy_columns=names)
    assert embed(connection, session, pipeline) == 2
    assert_converged(connection, "reports")
