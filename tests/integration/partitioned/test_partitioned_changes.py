"""A target table in parts through switches, changed keys and what is refused."""

from __future__ import annotations

import re

import pytest

from pgqueue_embed.adopt.table_check import check_table
from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import UsageError
from pgqueue_embed.lifecycle.alter import Changes
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.lifecycle.follow_source import follow_source
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.target.parts import leaves
from pgqueue_embed.vector_search.index import (
    count_vectors,
    vector_indexes,
)
from pgqueue_embed.verification.sample import draw_chunks
from tests.support.altering import begin, embed, signature
from tests.support.commands import pgembed
from tests.support.corpus import make_source, texts
from tests.support.oracle import assert_converged
from tests.support.parts import REPORTS_IN_PARTS, build, of_parts
from tests.support.pipelines import make_pipeline
from tests.support.working import drain, embed_documents

pytestmark = pytest.mark.usefixtures("fake_next_model", "quick_switch")


PREPARED = {"reports": REPORTS_IN_PARTS}


def test_next_generation_has_the_same_parts_and_takes_their_names(
    conninfo: str, connection: Connection, session: Session, reports: Pipeline
) -> None:
    with connect(conninfo) as builder:
        build(builder, reports)
    connection.execute("create role reader_of_parts")
    connection.execute("grant select on public.reports_chunks to reader_of_parts")
    names = relations(connection)
    embed(session, begin(connection, reports))
    with connect(conninfo) as own:
        switched = switch(own, reports)
    try:
        assert relations(connection) == names
        assert [each.valid for each in vector_indexes(connection, switched)] == [True]
        assert of_parts(connection) == []
        with connection.transaction():
            connection.execute("set local role reader_of_parts")
            assert connection.value("select count(*) from public.reports_chunks") > 30
    finally:
        connection.execute("drop owned by reader_of_parts; drop role reader_of_parts")
    assert_converged(connection, "reports")
    drop_pipeline(connection, switched, delete_vectors=True)
    assert [name for name in relations(connection) if "chunks" in name] == []


@pytest.mark.parametrize(
    ("before", "after", "parts"),
    [(None, "hash:2", 2), ("hash:3", "range:id:1,9", 2), ("hash:3", "", 1)],
)
def test_parts_are_altered_by_a_new_generation(
    conninfo: str,
    connection: Connection,
    session: Session,
    before: str | None,
    after: str,
    parts: int,
) -> None:
    pipeline = embed_documents(connection, session, texts(12), partition_by=before)
    stored = signature(connection)
    embed(session, begin(connection, pipeline, Changes(partition_by=after)))
    with connect(conninfo) as own:
        switched = switch(own, pipeline)
    assert switched.spec.partition_by == (after or None)
    assert len(leaves(connection, switched.target)) == parts
    assert signature(connection) == stored
    assert_converged(connection, "reports")


@pytest.mark.parametrize("partition_by", [None, "hash:11"])
def test_name_as_long_as_can_be_is_kept_by_a_switch(
    conninfo: str, connection: Connection, session: Session, partition_by: str | None
) -> None:
    table = Table(schema="public", name="é" * 31 + "x")
    pipeline = embed_documents(
        connection, session, texts(12), target=table, partition_by=partition_by
    )
    embed(session, begin(connection, pipeline))
    with connect(conninfo) as own:
        assert switch(own, pipeline).target == table
    assert_converged(connection, "reports")


def test_part_that_was_added_by_hand_is_not_lost_by_a_switch(
    conninfo: str, connection: Connection, session: Session
) -> None:
    pipeline = embed_documents(connection, session, texts(12), partition_by="range:id:1,9")
    add = "create table public.{0}_more partition of public.{0} for values from (100) to (200)"
    connection.execute(add.format("reports_chunks"))
    embed(session, begin(connection, pipeline))
    with connect(conninfo) as own:
        with pytest.raises(UsageError, match=r"part FOR VALUES FROM \('100'\) TO \('200'\)"):
            switch(own, pipeline)
        connection.execute(add.format("reports_chunks_next"))
        switch(own, pipeline)
    assert_converged(connection, "reports")


def test_key_that_becomes_wider_asks_for_a_new_generation(
    conninfo: str, connection: Connection, session: Session
) -> None:
    connection.execute("create table public.reports (id integer primary key, body text)")
    connection.execute(
        "insert into public.reports select n, 'A report.' from generate_series(1, 9) n"
    )
    pipeline = make_pipeline(connection, partition_by="hash:2")
    enqueue(connection, pipeline, Selection())
    drain(session, pipeline)
    connection.execute("alter table public.reports alter column id type bigint")
    with pytest.raises(UsageError, match=r"parted by its key.*alter reports --partition-by ''"):
        follow_source(connection, pipeline)
    embed(session, begin(connection, pipeline, Changes(partition_by="hash:4")))
    with connect(conninfo) as own:
        switched = switch(own, pipeline)
    connection.execute("insert into public.reports values (3000000000, 'A pump.')")
    enqueue(connection, switched, Selection())
    drain(session, switched)
    assert_converged(connection, "reports")


def relations(connection: Connection) -> list[str]:
    rows = connection.execute(
        "select relname from pg_class where relnamespace = 'public'::regnamespace"
        " and relname like 'reports%%' order by 1"
    )
    return [name for (name,) in rows]


# What cannot be


@pytest.mark.parametrize(
    ("partition_by", "said"),
    [
        ("16", "give hash:16, or range:year:"),
        ("hash:1", "give 2 to 256 parts"),
        ("hash:many", "give 2 to 256 parts"),
        ("hash:257", "give 2 to 256 parts"),
        ("range:id", "name a column of the key and 2 to 255 values"),
        ("range:id:5", "name a column of the key and 2 to 255 values"),
        ("range:id:5,,6", "name a column of the key and 2 to 255 values"),
        ("range:year:1,2", "no column of the key.*--id-field year,id.*or give hash:16"),
        ("range:id:6,10,9", "9 does not come behind 10"),
        ("range:id:6,6", "6 does not come behind 6"),
        ("range:id:a,b", r"invalid input syntax .*; give values of id, which is of type bigint"),
        ("range:id:1,99999999999999999999", "out of range"),
    ],
)
def test_parts_that_cannot_be_are_refused_with_the_way_out(
    conninfo: str, connection: Connection, partition_by: str, said: str
) -> None:
    make_source(connection, texts(2))
    with pytest.raises(UsageError, match=said):
        make_pipeline(connection, partition_by=partition_by)
    source = ("--source-table", "reports", "--text-field", "body")
    ran = pgembed(conninfo, "estimate", "reports", *source, "--partition-by", partition_by)
    assert re.search(said, str(ran.error))
    assert connection.value("select count(*) from pgembed.pipelines") == 0
    assert relations(connection) == ["reports", "reports_pkey"]


def test_table_that_has_the_name_of_a_part_is_named(connection: Connection) -> None:
    source = make_source(connection, texts(2))
    connection.execute("create table public.reports_chunks_2 ()")
    with pytest.raises(UsageError, match=r"reports_chunks_2, a part of .*exists already; rename"):
        make_pipeline(connection, source, partition_by="hash:3")


def test_what_looks_at_vectors_looks_at_all_parts(
    connection: Connection, reports: Pipeline
) -> None:
    chunks = connection.value("select count(*) from public.reports_chunks")
    assert len(draw_chunks(connection, reports, 1_000)) == chunks
    assert count_vectors(connection, reports) == chunks


def test_partitioned_table_is_not_adopted(connection: Connection, reports: Pipeline) -> None:
    drop_pipeline(connection, reports, delete_vectors=False)
    with pytest.raises(UsageError, match=r"partitioned.*or embed anew with pgembed create"):
        check_table(connection, reports.spec, reports.key)


def test_column_of_the_source_has_no_parts_to_be_made(connection: Connection) -> None:
    source = make_source(connection, texts(2))
    with pytest.raises(UsageError, match="--partition-by belongs to a target table"):
        make_pipeline(
            connection,
            source,
            target=source,
            into_column="vector",
            chunking="none",
            partition_by="hash:2",
        )


def test_partitioned_source_that_has_the_vectors_is_indexed_too(
    conninfo: str, connection: Connection
) -> None:
    connection.execute(
        "create table public.reports (id bigint primary key, body text) partition by range (id);"
        "create table public.early partition of public.reports for values from (1) to (4);"
        "create table public.late partition of public.reports for values from (4) to (9)"
        " partition by hash (id);"
        "create table public.late_0 partition of public.late"
        " for values with (modulus 1, remainder 0);"
        "insert into public.reports select n, 'A report.' from generate_series(1, 6) as n"
    )
    table = Table(schema="public", name="reports")
    pipeline = make_pipeline(
        connection, table, target=table, into_column="vector", chunking="none", overlap_tokens=0
    )
    connection.execute("update public.reports set vector = '[1,0,0,0,0,0,0,0]'")
    with connect(conninfo) as builder:
        build(builder, pipeline)
    (index,) = vector_indexes(connection, pipeline)
    assert index.valid
    assert of_parts(connection) == []
