"""Vectors in a column of the source, beside users who write to its rows, and in use."""

from __future__ import annotations

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from pgqueue_embed import Database, Worker
from pgqueue_embed.claim import write
from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.doctor import pipeline as checks
from pgqueue_embed.errors import PipelineFault
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.lifecycle.sync import start_capture
from pgqueue_embed.queue.claims import is_drained
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.vector_search.index import has_vector_index, plan
from pgqueue_embed.vector_search.index_build import build_index
from pgqueue_embed.vector_search.index_plan import IndexOptions
from pgqueue_embed.vector_search.query import has_vectors, search
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support.column_vectors import column, embed, versions
from tests.support.columns import assert_column_converged, into_column, whole_chunker
from tests.support.commands import pgembed
from tests.support.conditions import wait_until_blocked
from tests.support.corpus import make_source, texts
from tests.support.fakes import FakeDevice, unit_vector
from tests.support.models import make_tiny_model
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.rows import one_value
from tests.support.working import drain, open_session, work_once


class TestBesideUsers:
    """Nothing of a user's is lost, waits long, or makes a vector stale."""

    def test_text_that_changes_while_its_row_is_waited_for_gets_no_stale_vector(
        self, connection: Connection, conninfo: str, session: Session
    ) -> None:
        make_source(connection, texts(3))
        pipeline = into_column(connection)
        enqueue(connection, pipeline, Selection())
        pid = session.connection.info.backend_pid
        with connect(conninfo) as user, ThreadPoolExecutor() as threads:
            with user.transaction():
                user.execute("update public.reports set body = 'theirs' where id = 2")
                user.execute("delete from public.reports where id = 3")
                claim = threads.submit(work_once, session, pipeline, chunker=whole_chunker())
                wait_until_blocked(connection, pid)
            done = claim.result()
        assert done is not None
        assert (done.commit.embedded, done.commit.failed) == (1, 0)
        assert versions(connection)[2][1] is False
        drain(session, pipeline, chunker=whole_chunker())
        assert_column_converged(connection, pipeline)
        assert sorted(versions(connection)) == [1, 2]

    @pytest.mark.on_both_servers
    def test_row_that_moves_to_another_partition_meanwhile_is_tried_again(
        self, connection: Connection, conninfo: str, session: Session
    ) -> None:
        connection.execute(
            "create table reports (id bigint, body text, kind text) partition by list (kind)"
        )
        for kind in ("a", "b"):
            connection.execute(
                f"create table of_{kind} partition of reports for values in ('{kind}')"
            )
        connection.execute("create view keyed as select id, body from reports")
        connection.execute(
            "insert into reports select n, 'text ' || n, 'a' from generate_series(1, 3) n"
        )
        connection.execute("drop view keyed")
        connection.execute("alter table reports add unique (id, kind)")
        pipeline = into_column(connection, id_fields=("id", "kind"), where="id > 0")
        enqueue(connection, pipeline, Selection())
        pid = session.connection.info.backend_pid
        with connect(conninfo) as user, ThreadPoolExecutor() as threads:
            with user.transaction():
                user.execute("update public.reports set kind = 'b' where id = 2")
                claim = threads.submit(work_once, session, pipeline, chunker=whole_chunker())
                wait_until_blocked(connection, pid)
            claim.result()
        embed(connection, session, pipeline)
        assert_column_converged(connection, pipeline)

    def test_user_who_waits_for_a_worker_and_is_waited_for_wins(
        self, connection: Connection, conninfo: str, session: Session
    ) -> None:
        make_source(connection, texts(2))
        pipeline = into_column(connection)
        enqueue(connection, pipeline, Selection())
        with connect(conninfo) as user, ThreadPoolExecutor() as threads:
            with user.transaction():
                user.execute("set local lock_timeout = '20s'")
                user.execute("update public.reports set body = 'b' where id = 2")
                claim = threads.submit(work_once, session, pipeline, chunker=whole_chunker())
                wait_until_blocked(connection, session.connection.info.backend_pid)
                user.execute("update public.reports set body = 'a' where id = 1")
            claim.result()
        drain(session, pipeline, chunker=whole_chunker())
        assert_column_converged(connection, pipeline)

    def test_users_update_texts_and_other_columns_while_workers_write(
        self, connection: Connection, conninfo: str
    ) -> None:
        make_source(connection, texts(40))
        connection.execute("alter table reports add views integer not null default 0")
        pipeline = into_column(connection)
        enqueue(connection, pipeline, Selection())
        stop = threading.Event()

        def use(seed: int) -> int:
            dice, clicks = random.Random(seed), 0
            with connect(conninfo) as user:
                while not stop.is_set():
                    ids = dice.sample(range(1, 41), 3)
                    with user.transaction():
                        user.execute(
                            "update public.reports set views = views + 1 where id = any(%s)", (ids,)
                        )
                        user.execute(
                            "update public.reports set body = %s where id = %s",
                            (f"text {seed} {clicks}", ids[0]),
                        )
                    clicks += 3
            return clicks

        def work(number: int) -> None:
            with open_session(conninfo, worker_id=number) as session:
                while not stop.is_set():
                    enqueue(session.side, pipeline, Selection())
                    drain(session, pipeline, chunker=whole_chunker())

        with ThreadPoolExecutor() as threads:
            users = [threads.submit(use, seed) for seed in (1, 2)]
            workers = [threads.submit(work, number) for number in (1, 2)]
            threading.Timer(3.0, stop.set).start()
            clicks = sum(user.result() for user in users)
            for worker in workers:
                worker.result()
        assert clicks > 100
        assert connection.execute("select sum(views) from reports").fetchone() == (clicks,)
        with open_session(conninfo) as session:
            embed(connection, session, pipeline)
            assert is_drained(connection, [pipeline.id])
        assert_column_converged(connection, pipeline)

    @pytest.mark.on_both_servers
    def test_capture_queues_edits_and_no_vector(
        self, connection: Connection, session: Session
    ) -> None:
        make_source(connection, texts(9))
        pipeline = into_column(connection)
        start_capture(connection, pipeline)
        embed(connection, session, pipeline)
        assert is_drained(connection, [pipeline.id])
        connection.execute("update reports set body = 'edited' where id = 4")
        connection.execute("delete from reports where id = 5")
        assert not is_drained(connection, [pipeline.id])
        drain(session, pipeline, chunker=whole_chunker())
        assert is_drained(connection, [pipeline.id])
        assert_column_converged(connection, pipeline)


class TestUsing:
    """Search, index, doctor and drop."""

    def test_search_finds_the_documents_themselves(
        self, connection: Connection, session: Session
    ) -> None:
        make_source(connection, [*texts(30), None])
        pipeline = into_column(connection)
        assert not has_vectors(connection, pipeline)
        embed(connection, session, pipeline)
        wanted = texts(30)[6]
        (hit,) = search(
            connection, pipeline, unit_vector(wanted), SearchRequest(limit=1, threshold=0.0)
        )
        assert (hit.key, hit.chunk, hit.chunk_index) == (7, wanted, 0)
        assert (hit.start_char, hit.end_char) == (0, len(wanted))
        assert hit.score == pytest.approx(1.0, abs=1e-5)
        everything = search(
            connection, pipeline, unit_vector(wanted), SearchRequest(limit=50, threshold=-1.0)
        )
        assert len(everything) == 30

    @pytest.mark.on_both_servers
    @pytest.mark.parametrize("method", ["hnsw", "ivfflat"])
    def test_index_is_built_on_the_column_and_used(
        self, connection: Connection, session: Session, method: str
    ) -> None:
        make_source(connection, texts(60))
        pipeline = into_column(connection)
        embed(connection, session, pipeline)
        name = build_index(
            connection, pipeline, plan(connection, pipeline, IndexOptions(method=method))
        )
        assert name == f"reports_embedding_{method}"
        assert has_vector_index(connection, pipeline)
        connection.execute("set enable_seqscan = off")
        connection.execute("set auto_explain.log_analyze = off")
        (hit,) = search(
            connection, pipeline, unit_vector(texts(60)[3]), SearchRequest(limit=1, threshold=0.5)
        )
        assert hit.key == 4
        connection.execute("select pg_stat_force_next_flush()")
        scans = one_value(
            connection, "select idx_scan from pg_stat_user_indexes where indexrelname = %s", (name,)
        )
        assert scans > 0

    def test_doctor_tells_the_right_that_is_missing(
        self, connection: Connection, conninfo: str
    ) -> None:
        make_source(connection, texts(1))
        pipeline = into_column(connection)
        findings = [check.finding for check in checks.check_tables(connection, pipeline)]
        assert findings == ["public.reports may be read, public.reports.embedding written"]
        connection.execute("create role reader login password 'x'")
        try:
            connection.execute("grant select on reports, pgembed.pipelines to reader")
            connection.execute("grant usage on schema pgembed to reader")
            with connect(make_conninfo(conninfo, user="reader", password="x")) as reader:
                (check,) = checks.check_tables(reader, pipeline)
            assert check.finding == 'this role lacks update ("embedding") on public.reports'
            assert check.fix == (
                'its owner: grant update ("embedding") on public.reports to reader'
            )
        finally:
            connection.execute("drop owned by reader")
            connection.execute("drop role reader")

    def test_dropped_pipeline_leaves_its_column_unless_told_otherwise(
        self, connection: Connection, session: Session
    ) -> None:
        make_source(connection, texts(3))
        pipeline = into_column(connection)
        embed(connection, session, pipeline)
        drop_pipeline(connection, pipeline, delete_vectors=False)
        assert {embedded for _, embedded in versions(connection).values()} == {True}
        again = into_column(connection)
        assert not again.target_is_made
        drop_pipeline(connection, again, delete_vectors=False)
        connection.execute("alter table reports drop embedding")
        made = into_column(connection)
        embed(connection, session, made)
        drop_pipeline(connection, made, delete_vectors=True)
        assert column(connection, "reports", "embedding") is None

    def test_column_that_is_gone_pauses(self, connection: Connection, session: Session) -> None:
        make_source(connection, texts(3))
        pipeline = into_column(connection)
        enqueue(connection, pipeline, Selection())
        connection.execute("alter table reports drop embedding")
        with pytest.raises(PipelineFault, match="embedding"):
            work_once(session, pipeline, chunker=whole_chunker())


def test_chunk_table_of_another_pipeline_may_be_a_source_with_a_column(
    connection: Connection, session: Session
) -> None:
    make_source(connection, texts(4))
    chunks = make_pipeline(connection)
    enqueue(connection, chunks, Selection())
    drain(session, chunks)
    source = Table(schema="public", name="reports_chunks")
    pipeline = into_column(connection, source, "second", name="second", text_field="text_chunk")
    embed(connection, session, pipeline)
    assert_column_converged(connection, pipeline)


def test_write_gives_up_waiting_for_a_row_after_its_patience(
    connection: Connection, conninfo: str, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "MAX_LOCK_WAIT_SECONDS", 0.5)
    make_source(connection, texts(2))
    pipeline = into_column(connection)
    enqueue(connection, pipeline, Selection())
    with connect(conninfo) as user, user.transaction():
        user.execute("select from public.reports where id = 2 for update")
        with pytest.raises(Exception, match="lock timeout"):
            work_once(session, pipeline, FakeDevice(), chunker=whole_chunker())
    drain(session, pipeline, chunker=whole_chunker())
    assert_column_converged(connection, pipeline)


def test_commands_embed_and_search_with_a_real_model(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    connection.execute(
        "create table docs (id uuid primary key default gen_random_uuid(), body text)"
    )
    answer = "A lithium battery overheated while it was being charged."
    connection.cursor().executemany(
        "insert into docs (body) values (%s)",
        [("The recipe asks for two eggs.",), (answer,), (None,), ("Rain is expected at noon.",)],
    )
    made = pgembed(
        conninfo,
        *("create", "docs", "--source-table", "docs", "--text-field", "body"),
        *("--chunking", "none", "--into-column", "embedding"),
        *("--model", str(make_tiny_model(tmp_path / "tiny"))),
    )
    assert made.stdout.startswith("made pipeline docs: body of public.docs → public.docs.embedding")
    assert pgembed(conninfo, "enqueue", "docs").stdout == "queued 4 records of public.docs\n"
    with Worker(Database(conninfo), drain=True) as worker:
        worker.wait()
    assert_converged(connection, "docs")
    found = json.loads(pgembed(conninfo, "search", "docs", "battery overheated", "--json").stdout)
    assert (found[0]["chunk"], found[0]["end_char"]) == (answer, len(answer))
    nearest = connection.execute(
        "select body from docs where embedding is not null order by embedding <=>"
        " (select embedding from docs where body = %s) limit 1",
        (answer,),
    ).fetchone()
    assert nearest == (answer,)
    again = pgembed(
        conninfo,
        *("create", "two", "--source-table", "docs", "--text-field", "body"),
        *("--into-column", "embedding", "--target-table", "x"),
    )
    assert (again.error or "").startswith("--into-column puts the vectors into the source")
