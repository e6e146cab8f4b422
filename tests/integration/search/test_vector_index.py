"""Vector indexes: built beside the workers, found again, cleaned up after an interruption."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from psycopg import sql

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import PgembedError, UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.vector_search import index_build
from pgqueue_embed.vector_search.index import (
    has_vector_index,
    index_name,
    plan,
    vector_indexes,
)
from pgqueue_embed.vector_search.index_build import build_index, read_build_progress
from pgqueue_embed.vector_search.index_plan import IndexOptions
from tests.support.building import build_waits
from tests.support.commands import pgembed
from tests.support.conditions import wait_until
from tests.support.corpus import make_source, texts
from tests.support.pipelines import make_pipeline
from tests.support.working import embed


@pytest.fixture
def empty(connection: Connection) -> Pipeline:
    """A pipeline without vectors."""
    return make_pipeline(connection, make_source(connection, texts(12, chunks=2)))


@pytest.fixture
def reports(connection: Connection, session: Session, empty: Pipeline) -> Pipeline:
    """A finished pipeline with a few dozen vectors."""
    embed(connection, session, empty)
    return empty


def build(connection: Connection, pipeline: Pipeline, **options: object) -> str:
    chosen = IndexOptions(**options)  # type: ignore[arg-type]
    return build_index(connection, pipeline, plan(connection, pipeline, chosen))


@contextmanager
def someone_writes(conninfo: str, pipeline: Pipeline) -> Iterator[Connection]:
    """Hold a transaction open that has written to the target: a build waits for its end."""
    target = sql.Identifier(pipeline.target.schema, pipeline.target.name)
    with connect(conninfo) as writer, writer.transaction():
        writer.execute(sql.SQL("update {} set tokens = tokens").format(target))
        yield writer


@pytest.mark.on_both_servers(every_case=True)
@pytest.mark.parametrize("method", ["hnsw", "ivfflat"])
@pytest.mark.parametrize("vector_type", ["vector", "halfvec"])
def test_an_index_is_built_and_used(connection: Connection, method: str, vector_type: str) -> None:
    source = make_source(connection, [])
    pipeline = make_pipeline(connection, source, vector_type=vector_type)
    connection.execute(
        "insert into reports_chunks"
        " (fulltext_id, chunk_id, chunk_index, text_chunk, start_char, end_char, tokens, embedding)"
        f" select n, n, 0, 'text', 0, 4, 1, array[n, 1, 1, 1, 1, 1, 1, 1]::{vector_type}"
        " from generate_series(1, 200) as n"
    )
    assert not has_vector_index(connection, pipeline)
    name = build(connection, pipeline, method=method)
    assert has_vector_index(connection, pipeline)
    listed = "select pipeline, index_name, method, is_valid from pgembed.vector_indexes"
    assert connection.execute(listed).fetchall() == [("reports", name, method, True)]
    connection.execute("set enable_seqscan = off")
    explained = connection.execute(
        "explain select id from reports_chunks order by embedding <=> '[1,1,1,1,1,1,1,1]' limit 3"
    ).fetchall()
    assert name in str(explained)


def test_the_extension_may_live_in_any_schema(server: object, empty_conninfo: str) -> None:
    from pgqueue_embed.db.migrate import migrate

    with connect(empty_conninfo) as session:
        session.execute('create schema "my vectors"')
        session.execute('create extension vector schema "my vectors"')
        migrate(empty_conninfo)
        pipeline = make_pipeline(session, make_source(session))
        build(session, pipeline)
        assert has_vector_index(session, pipeline)


def test_options_reach_the_index(connection: Connection, reports: Pipeline) -> None:
    build(connection, reports, m=8, ef_construction=40)
    build(connection, reports, method="ivfflat", lists=3)
    found = {index.method: index.parameters for index in vector_indexes(connection, reports)}
    assert found == {"hnsw": {"m": "8", "ef_construction": "40"}, "ivfflat": {"lists": "3"}}


def test_an_existing_index_is_named_and_left_alone(conninfo: str, reports: Pipeline) -> None:
    assert "built reports_chunks_embedding_hnsw" in pgembed(conninfo, "index", "reports").stdout
    again = pgembed(conninfo, "index", "reports", "--m", "8")
    assert again.exit_code == 0
    assert "has a vector index already" in again.stdout
    assert "m 16" in again.stdout


def test_an_index_that_searches_do_not_use_is_said_to_be_so(
    conninfo: str, reports: Pipeline
) -> None:
    assert "searches are by" not in pgembed(conninfo, "index", "reports").stdout
    said = pgembed(conninfo, "index", "reports", "--quantize", "binary").stdout
    assert "searches are by reports_chunks_embedding_hnsw (hnsw, m 16" in said


def test_an_index_that_the_user_made_counts(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    connection.execute(
        "create index by_hand on reports_chunks using hnsw (embedding vector_cosine_ops)"
    )
    assert has_vector_index(connection, reports)
    assert "by_hand" in pgembed(conninfo, "index", "reports").stdout


def test_an_index_of_another_distance_does_not_count(
    connection: Connection, reports: Pipeline
) -> None:
    connection.execute("create index on reports_chunks using hnsw (embedding vector_l2_ops)")
    assert not has_vector_index(connection, reports)


def test_ivfflat_on_an_empty_table_is_refused(conninfo: str, empty: Pipeline) -> None:
    ran = pgembed(conninfo, "index", "reports", "--method", "ivfflat")
    assert ran.exit_code == 2
    assert "none yet; embed first" in (ran.error or "")


def test_an_index_while_records_wait_is_warned_about(
    conninfo: str, connection: Connection, empty: Pipeline
) -> None:
    enqueue(connection, empty, Selection())
    assert "reports has pending records" in pgembed(conninfo, "index", "reports").stderr


def test_a_warning_of_the_server_is_passed_on(conninfo: str, reports: Pipeline) -> None:
    ran = pgembed(conninfo, "index", "reports", "--method", "ivfflat", "--lists", "100")
    assert "warning: ivfflat index created with little data" in ran.stderr


@pytest.mark.parametrize(
    ("vector_type", "dimensions", "way_out"),
    [
        ("vector", 2001, "--quantize halfvec (up to 4,000) or --quantize binary (up to 64,000)"),
        ("vector", 4001, "up to 2,000; --quantize binary (up to 64,000)"),
        ("halfvec", 4001, "up to 4,000; --quantize binary (up to 64,000)"),
    ],
)
def test_too_many_dimensions_are_refused_with_the_way_out(
    conninfo: str, connection: Connection, vector_type: str, dimensions: int, way_out: str
) -> None:
    source = make_source(connection)
    make_pipeline(connection, source, vector_type=vector_type, dimensions=dimensions)
    ran = pgembed(conninfo, "index", "reports")
    assert ran.exit_code == 2
    assert way_out in (ran.error or "")


def test_a_role_that_does_not_own_the_table_is_told_so(
    connection: Connection, reports: Pipeline
) -> None:
    connection.execute("drop role if exists reader")
    connection.execute("create role reader")
    connection.execute("grant usage on schema pgembed to reader")
    connection.execute("grant select on all tables in schema pgembed to reader")
    connection.execute("grant select on reports_chunks to reader")
    connection.execute("set role reader")
    try:
        with pytest.raises(UsageError, match="build as the table's owner"):
            build(connection, reports)
    finally:
        connection.execute("reset role")
        connection.execute("drop owned by reader; drop role reader")


def test_a_name_that_is_taken_is_not_dropped(connection: Connection, reports: Pipeline) -> None:
    connection.execute("create table public.reports_chunks_embedding_hnsw ()")
    with pytest.raises(UsageError, match="exists already"):
        build(connection, reports)
    connection.execute("select from public.reports_chunks_embedding_hnsw")


def test_a_dropped_target_table_is_said(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    connection.execute("drop table reports_chunks")
    assert "reports_chunks is gone" in (pgembed(conninfo, "index", "reports").error or "")


def test_a_long_table_name_gives_a_stable_name_of_63_bytes(reports: Pipeline) -> None:
    tables = [Table(schema="public", name="表" * 20 + last) for last in ("a", "b", "a")]
    specs = [dataclasses.replace(reports.spec, target=table) for table in tables]
    names = [index_name(dataclasses.replace(reports, spec=spec), "hnsw") for spec in specs]
    assert all(len(name.encode()) <= 63 for name in names)
    assert names[0] == names[2] != names[1]
    assert names[0].endswith("_hnsw")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGHUP, -1)]
)
def test_whoever_asks_it_to_leave_cancels_the_build_and_leaves_nothing_behind(
    conninfo: str, connection: Connection, reports: Pipeline, number: signal.Signals, code: int
) -> None:
    command = [sys.executable, "-m", "pgqueue_embed", "index", "reports"]
    environment = {**os.environ, "PGEMBED_DSN": conninfo}
    with someone_writes(conninfo, reports):
        # Whoever runs the tests in the background of a shell has SIGINT ignored, and hands that on.
        listen = functools.partial(signal.signal, number, signal.SIG_DFL)
        process = subprocess.Popen(command, env=environment, preexec_fn=listen)
        wait_until(lambda: build_waits(connection, reports), "the build waits for the writer")
        assert vector_indexes(connection, reports)[0].valid is False
        process.send_signal(number)
        wait_until(
            lambda: read_build_progress(connection, reports) is None, "the build is cancelled"
        )
    process.wait(timeout=30)
    assert process.returncode == code
    assert vector_indexes(connection, reports) == []


def test_a_build_whose_client_was_killed_ends_and_the_next_one_is_not_refused(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    command = [sys.executable, "-m", "pgqueue_embed", "index", "reports"]
    environment = {**os.environ, "PGEMBED_DSN": conninfo}
    with someone_writes(conninfo, reports):
        process = subprocess.Popen(command, env=environment)
        wait_until(lambda: build_waits(connection, reports), "the build waits for the writer")
        process.kill()
        process.wait(timeout=30)
        wait_until(
            lambda: read_build_progress(connection, reports) is None, "the server gives it up"
        )
    build(connection, reports)
    assert [index.valid for index in vector_indexes(connection, reports)] == [True]


def test_what_could_not_be_cleaned_up_is_replaced_by_the_next_build(
    conninfo: str,
    connection: Connection,
    reports: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(index_build, "CLEAN_UP_SECONDS", 0.1)
    failures: list[PgembedError] = []
    warnings: list[str] = []
    planned = plan(connection, reports, IndexOptions())

    def build_in_vain(builder: Connection) -> None:
        try:
            build_index(builder, reports, planned, on_warning=warnings.append)
        except PgembedError as error:
            failures.append(error)

    with someone_writes(conninfo, reports), connect(conninfo) as builder:
        thread = threading.Thread(target=build_in_vain, args=(builder,))
        thread.start()
        wait_until(lambda: build_waits(connection, reports), "the build waits for the writer")
        connection.execute("select pg_cancel_backend(%s)", (builder.info.backend_pid,))
        thread.join()
    assert "the index was not built" in str(failures[0])
    assert "the next build replaces it" in warnings[0]
    assert [index.valid for index in vector_indexes(connection, reports)] == [False]
    assert not has_vector_index(connection, reports)
    build(connection, reports)
    assert [index.valid for index in vector_indexes(connection, reports)] == [True]


def test_two_builds_at_once_do_not_drop_each_others_index(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    with connect(conninfo) as builder:
        thread = threading.Thread(target=build, args=(builder, reports))
        with someone_writes(conninfo, reports):
            thread.start()
            wait_until(lambda: build_waits(connection, reports), "the build waits for the writer")
            progress = read_build_progress(connection, reports)
            assert progress is not None
            assert progress.waits_for_pid is not None
            with pytest.raises(UsageError, match="being built already"):
                build(connection, reports)
        thread.join()
    assert has_vector_index(connection, reports)


def test_an_unknown_pipeline_is_a_usage_error(conninfo: str, reports: Pipeline) -> None:
    assert pgembed(conninfo, "index", "nope").exit_code == 2
