"""A target table in parts: what is true of one record in one part, and of indexes part by part.

What is promised of every target is told of this one too: see test_every_target. Searches by the
indexes of parts are compared with brute force in search/test_quantized_search.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

import pytest
from psycopg import sql

from pgqueue_embed.adopt.table_check import check_table
from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import PgembedError, UsageError
from pgqueue_embed.lifecycle.alter import Changes
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.lifecycle.follow_source import follow_source
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.target import target_of
from pgqueue_embed.target.parts import leaves
from pgqueue_embed.vector_search import index_build
from pgqueue_embed.vector_search.index import (
    count_vectors,
    lacks_declared,
    plan,
    vector_indexes,
)
from pgqueue_embed.vector_search.index_build import build_index, read_progress
from pgqueue_embed.vector_search.index_plan import IndexOptions
from pgqueue_embed.verification.sample import draw
from tests.support.altering import begin, embed, signature
from tests.support.commands import pgembed
from tests.support.conditions import wait_until
from tests.support.corpus import make_source, texts
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.prepared import filled_by
from tests.support.working import drain, embed_documents

pytestmark = pytest.mark.usefixtures("fake_next_model", "quick_switch")


def make_reports(connection: Connection, session: Session) -> None:
    embed_documents(connection, session, texts(30), partition_by="hash:3", index_method="hnsw")


PREPARED = {"reports": filled_by(make_reports)}


@pytest.fixture
def reports(connection: Connection) -> Pipeline:
    """A pipeline of 30 records in three parts, with an index to be."""
    return load_pipeline(connection, "reports")


def build(connection: Connection, pipeline: Pipeline) -> None:
    build_index(connection, pipeline, plan(connection, pipeline, IndexOptions()))


# Of one record, one part


@pytest.mark.on_both_servers(every_case=True)
@pytest.mark.parametrize(
    ("partition_by", "id_fields"),
    [("hash:4", ("id",)), ("hash:4", ("tenant", "id")), ("range:tenant:1,2,3,4", ("tenant", "id"))],
)
def test_chunks_of_a_record_are_looked_for_in_one_part(
    connection: Connection, partition_by: str, id_fields: tuple[str, ...]
) -> None:
    connection.execute(
        "create table public.reports (id bigint primary key, tenant integer default 2, body text)"
    )
    pipeline = make_pipeline(connection, id_fields=id_fields, partition_by=partition_by)
    target = target_of(pipeline)
    query = sql.SQL("explain (analyze, costs off) delete from {} as target where {}").format(
        target.rows, target.key_is_among
    )
    # So that tables without rows are looked into as those with millions are.
    connection.execute("set enable_seqscan = off; set enable_hashjoin = off")
    connection.execute("set enable_mergejoin = off")
    key = "7" if id_fields == ("id",) else "[2, 7]"
    lines = [line for (line,) in connection.execute(query, {"keys": [key]})]
    scans = [line for line in lines if "Scan" in line and "target_" in line]
    assert len(scans) == 4
    assert len([line for line in scans if "never executed" not in line]) == 1


# Indexes


def test_index_is_built_part_by_part_and_an_interrupted_build_goes_on(
    conninfo: str, connection: Connection, reports: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_build, "CLEAN_UP_SECONDS", 0.1)
    parts = leaves(connection, reports.target)
    assert len(parts) == 3
    failures: list[PgembedError] = []

    def build_in_vain(builder: Connection) -> None:
        try:
            build(builder, reports)
        except PgembedError as error:
            failures.append(error)

    with connect(conninfo) as writer, writer.transaction(), connect(conninfo) as builder:
        lock = sql.SQL("lock table {} in row exclusive mode")
        writer.execute(lock.format(parts[1].identifier))
        thread = threading.Thread(target=build_in_vain, args=(builder,))
        thread.start()
        wait_until(waits_in_second_part(connection, reports), "the second part waits")
        connection.execute("select pg_cancel_backend(%s)", (builder.info.backend_pid,))
        thread.join()
    assert "the index was not built" in str(failures[0])
    # The writer has kept it from clearing away the second one.
    kept = of_parts(connection)
    assert [(part, valid) for _, part, valid in kept] == [
        ("public.reports_chunks_0", True),
        ("public.reports_chunks_1", False),
    ]
    assert vector_indexes(connection, reports) == []
    assert lacks_declared(connection, reports)

    with connect(conninfo) as builder:
        build(builder, reports)
    (index,) = vector_indexes(connection, reports)
    assert (index.valid, index.name) == (True, "reports_chunks_embedding_hnsw")
    assert of_parts(connection) == []
    assert not lacks_declared(connection, reports)
    assert (
        connection.value("select to_regclass('public.reports_chunks_0_embedding_hnsw')::oid")
        == (kept[0][0])
    )
    size, rows, needed = connection.row(
        "select size_bytes, live_rows, (select sum(pg_relation_size(indexrelid)) from pg_index"
        " where indexrelid::regclass::text ~ '_._embedding_hnsw$') from pgembed.vector_indexes"
    )
    assert size == needed
    assert rows in (0, connection.value("select count(*) from public.reports_chunks"))


def waits_in_second_part(connection: Connection, pipeline: Pipeline) -> Callable[[], bool]:
    def waits() -> bool:
        found = read_progress(connection, pipeline)
        return (
            found is not None
            and (found.part, found.parts) == (2, 3)
            and found.waits_for_pid is not None
        )

    return waits


def of_parts(connection: Connection) -> list[tuple[int, str, bool]]:
    """Return the indexes of parts that are of no whole: oid, part and whether it can be used."""
    return connection.execute(
        "select to_regclass('public.' || quote_ident(index_name))::oid::bigint, part, is_valid"
        " from pgembed.vector_indexes where part is not null order by part"
    ).fetchall()


def test_part_of_another_index_is_replaced_and_one_that_fits_is_taken(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    own = "create index {} on public.{} using hnsw (embedding public.vector_cosine_ops) {}"
    # Of an interrupted build with other options, and by hand.
    connection.execute(
        own.format("reports_chunks_0_embedding_hnsw", "reports_chunks_0", "with (m = 4)")
    )
    connection.execute(own.format("by_hand", "reports_chunks_1", ""))
    with connect(conninfo) as builder:
        build(builder, reports)
    options = dict(
        connection.execute(
            "select relname::text, reloptions from pg_class"
            " where oid in (select relid from"
            " pg_partition_tree('public.reports_chunks_embedding_hnsw'))"
        )
    )
    asked = ["m=16", "ef_construction=64"]
    assert options == {
        "reports_chunks_embedding_hnsw": asked,
        "reports_chunks_0_embedding_hnsw": asked,
        "by_hand": None,
        "reports_chunks_2_embedding_hnsw": asked,
    }


def test_memory_is_for_the_largest_part(connection: Connection, session: Session) -> None:
    pipeline = embed_documents(connection, session, texts(40), partition_by="range:id:1,9,17")
    connection.execute("analyze")
    planned = plan(connection, pipeline, IndexOptions())
    chunks = connection.value("select count(*) from public.reports_chunks")
    assert (planned.parts, planned.rows) == (3, chunks)
    assert chunks / 3 <= planned.part_rows < chunks


# Generations


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
        # PostgreSQL has chosen names for the indexes that were copied.
        assert relations(connection) == [name.replace("g_hnsw", "g_idx") for name in names]
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
    assert len(draw(connection, reports, 1_000)) == chunks
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
