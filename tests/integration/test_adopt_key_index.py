"""The index on the key of an adopted table: built once, whatever interrupts it, beside others."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from pgqueue_embed.adopt import adopt_records, attach_table, ensure_key_index
from pgqueue_embed.db.names import MAX_IDENTIFIER_BYTES, Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.pipeline.pipeline import Pipeline
from tests.support.adopted_rows import own_rows
from tests.support.adopting import VECTORS, candidate_of, make_vectors
from tests.support.altering import once_an_index_is_built, unusable
from tests.support.conditions import terminate, wait_until
from tests.support.corpus import make_source, texts

INDEXES = """
select indexrelid::regclass::text, indisvalid
from pg_index
where indrelid = to_regclass(%s)
order by 1
"""


def indexes(connection: Connection, table: Table = VECTORS) -> list[tuple[str, bool]]:
    return connection.execute(INDEXES, (table.quoted,)).fetchall()


@pytest.fixture
def attached(connection: Connection) -> Pipeline:
    """A pipeline over a table of vectors that has no index yet."""
    source = make_source(connection, texts(3))
    make_vectors(connection, own_rows(texts(3)))
    return attach_table(connection, candidate_of(connection, source), ())


def test_build_that_a_person_interrupts_leaves_nothing(
    conninfo: str, connection: Connection, attached: Pipeline
) -> None:
    interrupt = lambda _pid: os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
    with once_an_index_is_built(conninfo, interrupt), pytest.raises(KeyboardInterrupt):
        ensure_key_index(connection, attached)
    assert unusable(connection) == []
    ensure_key_index(connection, attached)
    assert indexes(connection) == [("vectors_pgembed_key", True)]


def test_build_that_was_killed_is_replaced_by_the_next(
    conninfo: str, connection: Connection, attached: Pipeline
) -> None:
    with (
        connect(conninfo) as builder,
        once_an_index_is_built(conninfo, lambda pid: terminate(connection, pid)),
        pytest.raises(psycopg.OperationalError),
    ):
        ensure_key_index(builder, attached)
    assert indexes(connection) == [("vectors_pgembed_key", False)]
    ensure_key_index(connection, attached)
    assert indexes(connection) == [("vectors_pgembed_key", True)]


def test_build_that_goes_on_is_waited_for_and_not_repeated(
    conninfo: str, connection: Connection, attached: Pipeline
) -> None:
    """The server goes on with what a client has asked for who was killed."""
    oid = "select to_regclass('public.vectors_pgembed_key')::oid::bigint"
    building = "select count(*) from pg_stat_progress_create_index"
    with (
        connect(conninfo) as reader,
        connect(conninfo) as first,
        connect(conninfo) as second,
        ThreadPoolExecutor(2) as others,
    ):
        reader.execute("begin isolation level repeatable read")
        reader.execute("select from pgembed.pipelines")
        begun = others.submit(ensure_key_index, first, attached)
        wait_until(lambda: connection.value(building, ()) == 1, "the index is built")
        made = connection.value(oid, ())
        again = others.submit(ensure_key_index, second, attached)
        time.sleep(0.3)
        reader.execute("rollback")
        begun.result(30)
        again.result(30)
    assert indexes(connection) == [("vectors_pgembed_key", True)]
    assert connection.value(oid, ()) == made


def test_index_of_another_table_with_that_name_stays(connection: Connection) -> None:
    stem = "v" * (MAX_IDENTIFIER_BYTES - len("_pgembed_key"))
    tables = [Table(schema="public", name=f"{stem}_{number}") for number in (1, 2)]
    source = make_source(connection, texts(3))
    for number, table in enumerate(tables):
        make_vectors(connection, own_rows(texts(3)), table=table)
        candidate = candidate_of(connection, source, name=f"reports{number}", target=table)
        pipeline = attach_table(connection, candidate, ())
        ensure_key_index(connection, pipeline)
        adopt_records(connection, pipeline, candidate.judge())
    assert [len(indexes(connection, table)) for table in tables] == [1, 1]
    assert indexes(connection, tables[0]) == [(f"{stem}_pgembed_key", True)]


def test_index_of_ones_own_with_that_name_stays(connection: Connection, attached: Pipeline) -> None:
    connection.execute("create index vectors_pgembed_key on vectors (text_chunk)")
    ensure_key_index(connection, attached)
    assert indexes(connection) == [("vectors_pgembed_key", True), ("vectors_pgembed_key1", True)]
