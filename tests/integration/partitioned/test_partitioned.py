"""A target table in parts: what is true of one record in one part, and of indexes part by part.

What is promised of every target is told of this one too: see test_every_target. Searches by the
indexes of parts are compared with brute force in search/test_quantized_search.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from psycopg import sql

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import PgembedError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.target import target_of
from pgqueue_embed.target.parts import leaves
from pgqueue_embed.vector_search import index_build
from pgqueue_embed.vector_search.index import (
    lacks_declared,
    plan,
    vector_indexes,
)
from pgqueue_embed.vector_search.index_build import read_build_progress
from pgqueue_embed.vector_search.index_plan import IndexOptions
from tests.support.conditions import wait_until
from tests.support.corpus import texts
from tests.support.parts import REPORTS_IN_PARTS, build, of_parts
from tests.support.pipelines import make_pipeline
from tests.support.working import embed_documents

pytestmark = pytest.mark.usefixtures("fake_next_model", "quick_switch")


PREPARED = {"reports": REPORTS_IN_PARTS}


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
        found = read_build_progress(connection, pipeline)
        return (
            found is not None
            and (found.part, found.parts) == (2, 3)
            and found.waits_for_pid is not None
        )

    return waits


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
