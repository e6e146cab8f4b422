"""A switch takes along what belongs to a table: indexes, rights, views, the comment."""

from __future__ import annotations

import os
import signal

import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db import locks
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import (
    UsageError,
)
from pgqueue_embed.lifecycle import switch as switching
from pgqueue_embed.lifecycle.alter import Changes, abort
from pgqueue_embed.lifecycle.replace_table import TableReplacement
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search import index_plan
from pgqueue_embed.vector_search.index import plan, vector_indexes
from pgqueue_embed.vector_search.index_build import build_index
from pgqueue_embed.vector_search.lexical_index import build_lexical_index, has_lexical_index
from tests.support.altering import (
    REPORTS_EMBEDDED,
    begin,
    embed,
    once_an_index_is_built,
    signature,
    state,
    unusable,
)
from tests.support.commands import pgembed
from tests.support.corpus import texts
from tests.support.fakes import FakeDevice
from tests.support.oracle import assert_converged
from tests.support.rows import one_value
from tests.support.working import drain, embed_documents

pytestmark = pytest.mark.usefixtures("fake_next_model", "quick_switch")


PREPARED = {"reports": REPORTS_EMBEDDED}


@pytest.mark.on_both_servers
def test_indexes_rights_views_and_comment_are_taken_over(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    connection.execute("create role reader_of_vectors")
    try:
        connection.execute("grant select on reports_chunks to reader_of_vectors")
        connection.execute("grant update (text_chunk) on reports_chunks to reader_of_vectors")
        connection.execute('create index "odd ""name on x" on reports_chunks (length(text_chunk))')
        connection.execute(
            "create index on reports_chunks using hnsw (embedding vector_cosine_ops) with (m = 8)"
        )
        connection.execute(
            "create view of_people with (security_barrier) as select id, text_chunk from"
            " reports_chunks where tokens > 0"
        )
        connection.execute("create view on_view as select count(*) as chunks from of_people")
        connection.execute("comment on table reports_chunks is 'Ours.'")
        before = features(connection)
        embed(session, begin(connection, reports))
        switch(connection, reports)
        assert features(connection) == before
        chunks = one_value(connection, "select chunks from on_view")
        assert (chunks,) == connection.execute(
            "select count(*) from public.reports_chunks"
        ).fetchone()
    finally:
        connection.execute("drop owned by reader_of_vectors")
        connection.execute("drop role reader_of_vectors")


NAMES = """
select array_agg(relname order by relname)
from pg_index join pg_class on pg_class.oid = indexrelid
where indrelid = 'public.reports_chunks'::regclass
"""


def test_indexes_keep_their_names(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    """Whoever drops, builds anew or watches an index goes by its name."""
    on_text, on_vectors = "(length(text_chunk))", "using hnsw (embedding vector_cosine_ops)"
    for name, what in (("mine", on_text), ("twice", on_text), ("nearest", on_vectors)):
        connection.execute(f"create index {name} on reports_chunks {what}")
    before = one_value(connection, NAMES)
    embed(session, begin(connection, reports))
    switch(connection, reports)
    assert one_value(connection, NAMES) == before


@pytest.mark.parametrize("partition_by", [None, "hash:2"])
def test_storage_parameters_are_taken_over(
    connection: Connection, session: Session, partition_by: str | None
) -> None:
    pipeline = embed_documents(connection, session, texts(12), partition_by=partition_by)
    tables = set_storage_parameters(connection)
    connection.execute(f"alter table {tables[0]} set (parallel_workers = 2)")
    before = storage_parameters(connection)
    assert len(before) == 2 * len(tables)
    embed(session, begin(connection, pipeline))
    switch(connection, pipeline)
    assert storage_parameters(connection) == before


@pytest.mark.parametrize(
    ("partition_by", "then"), [(None, "hash:2"), ("hash:2", ""), ("hash:2", "hash:3")]
)
def test_storage_parameters_of_all_parts_are_set_on_all_new_ones(
    connection: Connection, session: Session, partition_by: str | None, then: str
) -> None:
    pipeline = embed_documents(connection, session, texts(12), partition_by=partition_by)
    set_storage_parameters(connection)
    wanted = [each[1:] for each in storage_parameters(connection)][:2]
    embed(session, begin(connection, pipeline, Changes(partition_by=then)))
    switch(connection, pipeline)
    found = storage_parameters(connection)
    assert [each[1:] for each in found] == wanted * (len(found) // 2)
    assert len(found) == 2 * max(1, int(then[5:] or 0))


def set_storage_parameters(connection: Connection) -> list[str]:
    """Set some on each table that holds chunks, and on what holds its long values; return them."""
    query = "select relname from pg_class where relname like 'reports_chunks%' and relkind = 'r'"
    tables = [name for (name,) in connection.execute(query + " order by 1").fetchall()]
    for table in tables:
        connection.execute(
            f"alter table {table} set (autovacuum_vacuum_scale_factor = 0.05, fillfactor = 90,"
            " toast.autovacuum_enabled = off)"
        )
    return tables


def storage_parameters(connection: Connection) -> list[tuple[str, bool, list[str]]]:
    """Return what is set on each table of chunks and on what holds its long values."""
    return connection.execute(
        "select relation.relname, kind.oid <> relation.oid, array(select unnest(kind.reloptions)"
        " order by 1) from pg_class as relation join pg_class as kind on kind.oid in (relation.oid,"
        " relation.reltoastrelid) where relation.relname like 'reports_chunks%' and"
        " kind.reloptions is not null and relation.relkind = 'r' order by 1, 2"
    ).fetchall()


def features(connection: Connection) -> list[tuple[object, ...]]:
    """Return rights, comment, and the indexes' definitions without their names."""
    return connection.execute(
        "select relacl::text, obj_description(oid, 'pg_class'),"
        " (select attacl::text from pg_attribute where attrelid = c.oid"
        " and attname = 'text_chunk'),"
        " (select array_agg(d order by d) from (select regexp_replace(pg_get_indexdef(indexrelid),"
        " '^.* USING ', '') as d from pg_index where indrelid = c.oid) as i)"
        " from pg_class as c where relname = 'reports_chunks'"
    ).fetchall()


def test_switch_that_is_interrupted_while_it_builds_an_index_leaves_nothing_of_it(
    conninfo: str, connection: Connection, session: Session, reports: Pipeline
) -> None:
    connection.execute("create index on reports_chunks using hnsw (embedding vector_cosine_ops)")
    successor = begin(connection, reports)
    embed(session, successor)
    interrupt = lambda _pid: os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
    with once_an_index_is_built(conninfo, interrupt), pytest.raises(KeyboardInterrupt):
        switch(connection, reports)
    assert unusable(connection) == []
    assert vector_indexes(connection, switch(connection, reports))


def test_index_of_vectors_is_built_for_the_new_type(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    connection.execute("create index on reports_chunks using hnsw (embedding vector_cosine_ops)")
    embed(session, begin(connection, reports, Changes(vector_type="halfvec")))
    switch(connection, reports)
    definitions = " ".join(map(str, features(connection)[0]))
    assert "halfvec_cosine_ops" in definitions


@pytest.mark.parametrize("quantize", ["halfvec", "binary"])
def test_index_of_smaller_vectors_is_built_for_the_new_dimensions(
    connection: Connection, session: Session, reports: Pipeline, quantize: str
) -> None:
    options = index_plan.IndexOptions(quantize=quantize)
    build_index(connection, reports, plan(connection, reports, options))
    build_lexical_index(connection, reports)
    successor = begin(connection, reports, Changes(model="another/model"))
    assert successor.dimensions != reports.dimensions
    drain(session, successor, FakeDevice(dimensions=successor.dimensions))
    switched = switch(connection, reports)
    found = [(each.quantize, each.valid) for each in vector_indexes(connection, switched)]
    assert found == [(quantize, True)]
    assert has_lexical_index(connection, switched)


def test_switch_builds_its_indexes_with_the_memory_that_index_would(
    connection: Connection,
    session: Session,
    reports: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection.execute("create index on reports_chunks using hnsw (embedding vector_cosine_ops)")
    connection.execute("set maintenance_work_mem = '1MB'")
    successor = begin(connection, reports, Changes(vector_type="halfvec"))
    embed(session, successor)
    copy_indexes, settings = TableReplacement.copy_indexes, []

    def noting(replacement: TableReplacement, connection: Connection) -> None:
        settings.append(one_value(connection, "show maintenance_work_mem"))
        copy_indexes(replacement, connection)

    monkeypatch.setattr(TableReplacement, "copy_indexes", noting)
    monkeypatch.setattr(index_plan, "hnsw_bytes", lambda *_: 77 * index_plan.MEGABYTE)
    switch(connection, reports)
    assert settings == ["77MB"]
    assert one_value(connection, "show maintenance_work_mem") == "1MB"


EFFORT = """
update pgembed.pipelines
set ef_search = 120, ef_search_scan = 'none', ef_search_parameters = '{}', ef_search_k = 10,
    ef_search_recall = 0.9
where name = 'reports'
"""


@pytest.mark.parametrize("model", [None, "another/model"])
def test_measured_effort_is_kept_for_vectors_of_the_same_model_alone(
    connection: Connection, session: Session, reports: Pipeline, conninfo: str, model: str | None
) -> None:
    connection.execute(
        "create index on public.reports_chunks using hnsw (embedding public.vector_cosine_ops)"
    )
    connection.execute(EFFORT)
    successor = begin(connection, reports, *([Changes(model=model)] if model else []))
    if model:
        drain(session, successor, FakeDevice(dimensions=successor.dimensions))
    else:
        embed(session, successor)
    switched = pgembed(conninfo, "alter", "reports", "--switch")
    found = one_value(
        connection, "select pgembed.measured_effort(pipelines, 'none') from pgembed.pipelines"
    )
    assert found == (None if model else 120)
    said = "the ef_search 120 of reports was measured by another index, or other vectors"
    assert (said in switched.stderr) is bool(model)


@pytest.mark.parametrize(
    ("addition", "complaint"),
    [
        ("alter table reports_chunks add column checked boolean", "column checked"),
        ("alter table reports_chunks enable row level security", "row level security"),
        ("alter table reports_chunks add check (tokens < 9999)", "constraint CHECK"),
        (
            "create materialized view counted as select count(*) from public.reports_chunks",
            "counted",
        ),
        (
            "create table remarks (chunk_id bigint references reports_chunks (id))",
            "remarks",
        ),
        (
            "create view shown as select embedding from public.reports_chunks",
            "view public.shown cannot read the new vectors",
        ),
    ],
)
def test_what_cannot_be_taken_over_is_told_and_nothing_is_switched(
    connection: Connection,
    session: Session,
    reports: Pipeline,
    addition: str,
    complaint: str,
) -> None:
    connection.execute(addition)
    successor = begin(connection, reports, Changes(model="another/model"))
    drain(session, successor, FakeDevice(dimensions=4))
    before, old = state(connection), signature(connection)
    with pytest.raises(UsageError, match=complaint) as refused:
        switch(connection, reports)
    assert "\n" not in str(refused.value)
    assert signature(connection) == old
    after = state(connection)
    assert {**after, "records": None} == {**before, "records": None}
    abort(connection, reports)


def test_reader_who_holds_the_table_is_not_waited_for_for_ever(
    conninfo: str,
    connection: Connection,
    session: Session,
    reports: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.05)
    monkeypatch.setattr(switching, "LOCK_SECONDS", 0.05)
    monkeypatch.setattr(locks, "TRIES", 2)
    embed(session, begin(connection, reports))
    with connect(conninfo) as reader, reader.transaction():
        reader.execute("select from public.reports_chunks")
        with pytest.raises(UsageError, match="used without a pause"):
            switch(connection, reports)
    switch(connection, reports)
    assert_converged(connection, "reports")
