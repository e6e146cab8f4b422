"""A source whose columns get other types: the pipeline follows, or says why it cannot."""

from __future__ import annotations

from typing import Any

import pytest

from pgqueue_embed.db.session import Connection
from pgqueue_embed.doctor.pipeline import check_types
from pgqueue_embed.errors import PipelineFault, UsageError
from pgqueue_embed.lifecycle.follow_source import follow_source
from pgqueue_embed.pipeline.catalog import is_current, load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.capture import install
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.working import drain, open_session, work_once


def make_embedded(conninfo: str, connection: Connection, key: str, **fields: Any) -> Pipeline:
    """Make a pipeline with capture on over three embedded records whose key is of type `key`."""
    values = {"uuid": "lpad(n::text, 32, '0')::uuid", "date": "date '2024-01-01' + n"}.get(
        key, f"n::{key}"
    )
    connection.execute(
        f"create table reports (id {key}, part {key}, body text, kind smallint default 1,"
        " primary key (id, part), unique (id))"
    )
    connection.execute(
        f"insert into reports select {values}, {values}, 'Report ' || n"
        " from generate_series(1, 3) as n"
    )
    pipeline = make_pipeline(connection, **fields)
    install(connection, pipeline)
    enqueue(connection, pipeline, Selection())
    with open_session(conninfo) as session:
        drain(session, pipeline)
    return pipeline


def test_long_keys_of_several_columns_follow_too(conninfo: str, connection: Connection) -> None:
    connection.execute(
        "create table reports (id uuid, part text, body text, primary key (id, part))"
    )
    connection.execute(
        "insert into reports"
        " select lpad(n::text, 32, '0')::uuid, repeat(md5(n::text), 20), 'Report'"
        " from generate_series(1, 3) as n"
    )
    pipeline = make_pipeline(connection, id_fields=("id", "part"))
    enqueue(connection, pipeline, Selection())
    with open_session(conninfo) as session:
        drain(session, pipeline)
        connection.execute("alter table reports alter id type text")
        follow_source(connection, pipeline)
        followed = load_pipeline(connection, "reports")
        assert enqueue(connection, followed, Selection()) == 0
        drain(session, followed)
    assert_converged(connection, "reports")


def keys_written(connection: Connection) -> int:
    (chunks,) = connection.execute("select sum(chunks) from pgembed.batches").fetchone() or (0,)
    return int(chunks)


# Type before and after, and a key that only the new type has.
FOLLOWED = [
    ("smallint", "integer", "40000"),
    ("smallint", "bigint", "3000000000"),
    ("integer", "bigint", "3000000000"),
    ("integer", "text", "'x-1'"),
    ("integer", "varchar(20)", "'x-1'"),
    ("uuid", "text", "'x-1'"),
    ("date", "text", "'x-1'"),
    ("text", "bigint", "3000000000"),
]


@pytest.mark.on_both_servers
@pytest.mark.parametrize(("before", "after", "key"), FOLLOWED)
def test_key_follows_the_source_and_nothing_is_embedded_again(
    conninfo: str, connection: Connection, before: str, after: str, key: str
) -> None:
    pipeline = make_embedded(conninfo, connection, before)
    written = keys_written(connection)
    connection.execute(f"alter table reports alter id type {after} using id::{after}")
    (check,) = check_types(connection, pipeline)
    assert check.fix == "pgembed alter reports --follow-source"
    connection.execute(f"insert into reports select {key}, part, 'New' from reports limit 1")
    assert [str(each).partition(":")[0] for each in follow_source(connection, pipeline)] == ["id"]
    assert follow_source(connection, load_pipeline(connection, "reports")) == []
    assert list(check_types(connection, load_pipeline(connection, "reports"))) == []
    assert not is_current(connection, pipeline), "a worker that fails with the old type pauses not"
    followed = load_pipeline(connection, "reports")
    with open_session(conninfo) as session:
        drain(session, followed)
        connection.execute("update reports set body = 'Changed' where body = 'New'")
        drain(session, followed)
    assert_converged(connection, "reports")
    assert keys_written(connection) == written + 2


@pytest.mark.parametrize(("before", "after"), [("bigint", "integer"), ("varchar(9)", "text")])
def test_key_that_became_narrower_or_is_spelled_as_before_needs_nothing(
    conninfo: str, connection: Connection, before: str, after: str
) -> None:
    pipeline = make_embedded(conninfo, connection, before)
    connection.execute(f"alter table reports alter id type {after}")
    assert follow_source(connection, pipeline) == []
    connection.execute("insert into reports values ('7', '7', 'New')")
    with open_session(conninfo) as session:
        drain(session, pipeline)
    assert_converged(connection, "reports")


@pytest.mark.parametrize(
    ("before", "using", "reason"),
    [
        ("text", "bigint using 1000 + id::bigint", "would be spelled otherwise|invalid input"),
        ("integer", "uuid using gen_random_uuid()", "invalid input syntax for type uuid"),
        ("bigint", "numeric", "in which one key has several spellings"),
        ("integer", "date using date '2024-01-01' + id", "invalid input syntax for type date"),
    ],
)
def test_key_whose_texts_would_be_others_is_refused_and_nothing_has_changed(
    conninfo: str, connection: Connection, before: str, using: str, reason: str
) -> None:
    pipeline = make_embedded(conninfo, connection, before)
    connection.execute("update pgembed.records set key = '0' || key where pipeline_id = 1")
    connection.execute(f"alter table reports alter id type {using}")
    with pytest.raises(UsageError, match=reason):
        follow_source(connection, pipeline)
    assert load_pipeline(connection, "reports") == pipeline


def test_key_of_several_columns_follows(conninfo: str, connection: Connection) -> None:
    pipeline = make_embedded(conninfo, connection, "integer", id_fields=("id", "part"))
    written = keys_written(connection)
    connection.execute("alter table reports alter part type bigint")
    connection.execute("insert into reports values (4, 3000000000, 'New')")
    with open_session(conninfo) as session, pytest.raises(PipelineFault, match="out of range"):
        drain(session, pipeline)
    follow_source(connection, pipeline)
    with open_session(conninfo) as session:
        drain(session, load_pipeline(connection, "reports"))
    assert_converged(connection, "reports")
    assert keys_written(connection) == written + 1
    connection.execute("alter table reports alter part type text")
    with pytest.raises(UsageError, match=r"key \[.*\] would be spelled otherwise"):
        follow_source(connection, load_pipeline(connection, "reports"))


@pytest.mark.parametrize("option", ["foreign_key", "copy_columns", "template", "into_column"])
def test_what_hangs_on_the_columns_follows_too(
    conninfo: str, connection: Connection, option: str
) -> None:
    every: dict[str, dict[str, Any]] = {
        "foreign_key": {"foreign_key": True, "view": True, "text": False},
        "copy_columns": {"copy_columns": ("kind", "part")},
        "template": {"template": "$body of $kind"},
        "into_column": {"into_column": "vector", "chunking": "none"},
    }
    pipeline = make_embedded(conninfo, connection, "integer", **every[option])
    connection.execute("drop view if exists reports_chunks_view, reports_chunks_chunks")
    connection.execute(
        "alter table reports alter id type bigint, alter part type bigint,"
        " alter kind drop default, alter kind type text"
    )
    follow_source(connection, pipeline)
    connection.execute("insert into reports values (3000000000, 3000000000, 'New', 'other')")
    followed = load_pipeline(connection, "reports")
    with open_session(conninfo) as session:
        drain(session, followed)
        assert work_once(session, followed) is None
    assert_converged(connection, "reports")
    assert list(check_types(connection, followed)) == []
