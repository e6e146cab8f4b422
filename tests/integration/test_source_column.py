"""Vectors in a column of the source: created, written beside busy users, cleared and dropped."""

from __future__ import annotations

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgqueue_embed import Database, Worker
from pgqueue_embed.claim import write
from pgqueue_embed.claim.process import Session
from pgqueue_embed.db import locks
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.doctor import pipeline as checks
from pgqueue_embed.errors import PipelineFault, RoleFault, UsageError
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.lifecycle.sync import start_capture
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.claims import is_drained
from pgqueue_embed.queue.dead_letters import retry
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.vector_search.index import has_vector_index, plan
from pgqueue_embed.vector_search.index_build import build_index
from pgqueue_embed.vector_search.index_plan import IndexOptions
from pgqueue_embed.vector_search.query import has_vectors, search
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support import working
from tests.support.columns import assert_column_converged, into_column, whole_chunker
from tests.support.commands import pgembed
from tests.support.conditions import wait_until_blocked
from tests.support.corpus import delete_records, make_source, set_text, texts
from tests.support.fakes import DIMENSIONS, POISON, FakeDevice, unit_vector
from tests.support.models import make_tiny_model
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.rows import one_value
from tests.support.working import drain, open_session, work_once

COLUMN = """
select format_type(atttypid, atttypmod), attnotnull, col_description(attrelid, attnum)
from pg_attribute
where attrelid = %s::regclass and attname = %s and not attisdropped
"""


def embed(connection: Connection, session: Session, pipeline: Pipeline) -> None:
    """Queue what is to be embedded, and embed it."""
    working.embed(connection, session, pipeline, chunker=whole_chunker())


def column(connection: Connection, table: str, name: str) -> tuple[str, bool, str] | None:
    return connection.execute(COLUMN, (table, name)).fetchone()


def versions(connection: Connection) -> dict[int, tuple[str, bool]]:
    """Return by id the version of each row, and whether it has a vector."""
    rows = connection.execute("select id, ctid::text, embedding is not null from reports")
    return {id_: (version, embedded) for id_, version, embedded in rows}


class TestCreate:
    """A column is added, or taken if it fits."""

    @pytest.mark.on_both_servers
    @pytest.mark.parametrize("vector_type", ["vector", "halfvec"])
    def test_column_is_added_with_the_type_of_the_vectors(
        self, connection: Connection, vector_type: str
    ) -> None:
        make_source(connection, texts(2))
        pipeline = into_column(connection, vector_type=vector_type)
        assert pipeline == load_pipeline(connection, "reports")
        assert (pipeline.target, pipeline.spec.into_column) == (pipeline.source, "embedding")
        assert column(connection, "reports", "embedding") == (
            f"{vector_type}({DIMENSIONS})",
            False,
            "Vectors of pgembed pipeline reports.",
        )

    def test_column_that_is_there_is_taken_and_never_dropped(
        self, connection: Connection, session: Session
    ) -> None:
        make_source(connection, texts(3))
        connection.execute(f"alter table reports add embedding vector({DIMENSIONS})")
        pipeline = into_column(connection)
        assert not pipeline.target_is_made
        embed(connection, session, pipeline)
        assert_column_converged(connection, pipeline)
        drop_pipeline(connection, pipeline, delete_vectors=True)
        assert column(connection, "reports", "embedding") is not None
        assert {embedded for _, embedded in versions(connection).values()} == {False}

    @pytest.mark.parametrize(
        ("definition", "complaint"),
        [
            ("text", "is there already, of type text"),
            ("halfvec(9)", r"of type public\.halfvec\(9\), and these vectors are public\.halfvec"),
            ("vector(9)", r"of type public\.vector\(9\), and these vectors are public\.vector"),
            ("vector", r"of type public\.vector, and these vectors are public\.vector\(8\)"),
            ("vector(8) not null default '[1,0,0,0,0,0,0,0]'", "without text has no vector"),
            ("vector(8) generated always as (null) stored", "is a generated column"),
        ],
    )
    def test_column_that_does_not_fit_is_refused_and_left_alone(
        self, connection: Connection, definition: str, complaint: str
    ) -> None:
        connection.execute("set search_path = pg_catalog, public")
        make_source(connection, texts(1))
        connection.execute(f"alter table public.reports add embedding {definition}")
        connection.execute("set search_path = pg_catalog")
        before = column(connection, "public.reports", "embedding")
        with pytest.raises(UsageError, match=complaint) as refused:
            into_column(connection)
        assert "\n" not in str(refused.value)
        assert column(connection, "public.reports", "embedding") == before
        assert connection.execute("select from pgembed.pipelines").fetchall() == []

    @pytest.mark.parametrize(
        ("fields", "complaint"),
        [
            (
                {"chunking": "tokens", "chunk_tokens": 16},
                "room for one vector; add --chunking none",
            ),
            ({"into_column": "body"}, "the record is read from that column"),
            ({"into_column": "id"}, "the record is read from that column"),
            ({"into_column": "tokens"}, "a search calls something else by that name"),
            ({"into_column": "x" * 64}, "longer than PostgreSQL's 63 bytes"),
            ({"into_column": None}, "source and target at once; for vectors in a column"),
        ],
    )
    def test_options_that_do_not_fit_together_are_refused(
        self, connection: Connection, fields: dict[str, Any], complaint: str
    ) -> None:
        make_source(connection, texts(1))
        with pytest.raises(UsageError, match=complaint):
            into_column(connection, **fields)

    @pytest.mark.parametrize("kind", ["view", "materialized view"])
    def test_view_has_no_column_to_write_to(self, connection: Connection, kind: str) -> None:
        make_source(connection, texts(1))
        connection.execute(f"create {kind} reading as select * from reports")
        with pytest.raises(UsageError, match=r"is no ordinary table.*a table of their own"):
            into_column(connection, Table(schema="public", name="reading"))

    def test_two_pipelines_share_a_table_and_never_a_column(
        self, connection: Connection, session: Session
    ) -> None:
        make_source(connection, texts(4))
        first = into_column(connection)
        second = into_column(connection, name="second", column="Zweite Spalte")
        with pytest.raises(UsageError, match=r"another pipeline writes to public\.reports\.embedd"):
            into_column(connection, name="third")
        for pipeline in (first, second):
            embed(connection, session, pipeline)
        for pipeline in (first, second):
            assert_column_converged(connection, pipeline)
        drop_pipeline(connection, second, delete_vectors=True)
        assert column(connection, "reports", "Zweite Spalte") is None
        assert_column_converged(connection, first)

    def test_role_that_does_not_own_the_table_needs_a_column_it_may_write(
        self, connection: Connection, conninfo: str
    ) -> None:
        make_source(connection, texts(1))
        connection.execute("create role stranger login password 'x'")
        try:
            connection.execute("grant all on all tables in schema pgembed to stranger")
            connection.execute("grant usage on schema pgembed to stranger")
            connection.execute("grant select on reports to stranger")
            with connect(make_conninfo(conninfo, user="stranger", password="x")) as stranger:
                with pytest.raises(UsageError, match=r"may not add column embedding.*owner"):
                    into_column(stranger)
                connection.execute(f"alter table reports add embedding vector({DIMENSIONS})")
                with pytest.raises(UsageError, match=r'grant update \("embedding"\) on'):
                    into_column(stranger)
                connection.execute("grant update (embedding) on reports to stranger")
                assert not into_column(stranger).target_is_made
        finally:
            connection.execute("drop owned by stranger")
            connection.execute("drop role stranger")

    def test_table_that_is_never_free_is_not_waited_for_for_ever(
        self, connection: Connection, conninfo: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(locks, "LOCK_SECONDS", 0.05)
        monkeypatch.setattr(locks, "PAUSE_SECONDS", 0.05)
        monkeypatch.setattr(locks, "TRIES", 2)
        make_source(connection, texts(1))
        with connect(conninfo) as reader:
            with reader.transaction():
                reader.execute("select from public.reports")
                with pytest.raises(UsageError, match=r"public\.reports is used without a pause"):
                    into_column(connection)
            assert column(connection, "reports", "embedding") is None
            monkeypatch.setattr(locks, "TRIES", 1000)
            with ThreadPoolExecutor() as threads, reader.transaction():
                reader.execute("select from public.reports")
                made = threads.submit(into_column, connection)
                # A reader that comes later waits for the lock for a moment, and not for the table.
                with connect(conninfo) as later:
                    later.execute("select from public.reports")
                assert not made.done()
                reader.execute("commit")
                assert made.result().target_is_made


class TestWriting:
    """Vectors are true to the text beside them, and nothing else of the row is touched."""

    @pytest.mark.on_both_servers
    def test_records_are_embedded_changed_emptied_and_forgotten(
        self, connection: Connection, session: Session
    ) -> None:
        make_source(connection, [*texts(20), None, "", "   "])
        pipeline = into_column(connection, where="id <> 7")
        embed(connection, session, pipeline)
        assert_column_converged(connection, pipeline)
        set_text(connection, pipeline.source, 1, "changed")
        set_text(connection, pipeline.source, 2, None)
        set_text(connection, pipeline.source, 21, "was empty")
        set_text(connection, pipeline.source, 30, "new")
        delete_records(connection, pipeline.source, [3, 4])
        embed(connection, session, pipeline)
        assert_column_converged(connection, pipeline)
        assert versions(connection)[7][1] is False

    def test_row_that_the_condition_no_longer_lets_in_loses_its_vector(
        self, connection: Connection, session: Session
    ) -> None:
        make_source(connection, texts(5))
        pipeline = into_column(connection, where="body not like '%withdrawn'")
        embed(connection, session, pipeline)
        connection.execute("update reports set body = body || ' withdrawn' where id = 2")
        embed(connection, session, pipeline)
        assert_column_converged(connection, pipeline)
        assert [id_ for id_, (_, embedded) in versions(connection).items() if not embedded] == [2]

    @pytest.mark.parametrize("vector_type", ["vector", "halfvec"])
    @pytest.mark.on_both_servers
    def test_partitioned_table_with_a_composite_key_and_a_template(
        self, connection: Connection, session: Session, vector_type: str
    ) -> None:
        connection.execute(
            "create table reports (tenant text, day date, title text, body text,"
            " primary key (tenant, day)) partition by list (tenant)"
        )
        for tenant in ("a", "b"):
            connection.execute(
                f"create table of_{tenant} partition of reports for values in ('{tenant}')"
            )
        connection.execute(
            "insert into reports select tenant, date '2024-01-01' + n, 'T' || n, 'text ' || n"
            " from unnest(array['a', 'b']) as tenant, generate_series(1, 20) as n"
        )
        pipeline = into_column(
            connection,
            id_fields=("tenant", "day"),
            template="$title: $body",
            vector_type=vector_type,
        )
        embed(connection, session, pipeline)
        connection.execute("update reports set title = '100 %' where day = '2024-01-03'")
        embed(connection, session, pipeline)
        connection.execute("delete from reports where day = '2024-01-04'")
        embed(connection, session, pipeline)
        embedded = one_value(connection, "select count(embedding) from reports")
        assert embedded == 38
        hits = search(
            connection,
            pipeline,
            unit_vector("100 %: text 2"),
            SearchRequest(limit=2, threshold=0.9),
        )
        assert [hit.key_text for hit in hits] == ['["a", "2024-01-03"]', '["b", "2024-01-03"]']
        assert {hit.chunk for hit in hits} == {"100 %: text 2"}

    def test_names_of_any_kind(self, connection: Connection, session: Session) -> None:
        schema, table, key = 'Sch"ema. ', "表 {0}", "the 'key'"
        connection.execute(sql.SQL("create schema {}").format(sql.Identifier(schema)))
        source = make_source(
            connection, texts(3), schema=schema, table=table, id_field=key, text_field="Té xt"
        )
        pipeline = into_column(
            connection, source, "Vec.tor", id_field=key, text_field="Té xt", name="ü 'p'"
        )
        embed(connection, session, pipeline)
        assert_column_converged(connection, pipeline)
        assert has_vectors(connection, pipeline)

    def test_record_without_a_vector_gets_no_new_row_version(
        self, connection: Connection, session: Session
    ) -> None:
        make_source(connection, [None, "", *texts(3)])
        pipeline = into_column(connection)
        before = versions(connection)
        embed(connection, session, pipeline)
        after = versions(connection)
        assert {id_ for id_ in after if after[id_] != before[id_]} == {3, 4, 5}
        enqueue(connection, pipeline, Selection(everything=True))
        drain(session, pipeline, chunker=whole_chunker())
        assert {id_ for id_, each in versions(connection).items() if each != after[id_]} == {
            3,
            4,
            5,
        }

    def test_poison_and_what_a_constraint_refuses_become_dead_letters(
        self, connection: Connection, session: Session
    ) -> None:
        make_source(connection, [*texts(9), POISON])
        connection.execute(
            "alter table reports add embedding vector(8),"
            " add constraint seven_is_bare check (id <> 7 or embedding is null)"
        )
        pipeline = into_column(connection, max_attempts=2)
        embed(connection, session, pipeline)
        assert_column_converged(connection, pipeline)
        dead = connection.execute("select key, last_error from pgembed.dead_letters order by 1")
        errors = dict(dead.fetchall())
        assert list(errors) == ["10", "7"]
        assert "seven_is_bare" in errors["7"]

    def test_constraint_that_refuses_every_vector_pauses(
        self, connection: Connection, session: Session
    ) -> None:
        make_source(connection, texts(10))
        pipeline = into_column(connection)
        connection.execute("alter table reports add check (embedding is null)")
        enqueue(connection, pipeline, Selection())
        with pytest.raises(PipelineFault, match="the target table refused it"):
            work_once(session, pipeline, chunker=whole_chunker())

    def test_vector_that_may_not_be_removed_is_a_dead_letter_until_it_may(
        self, connection: Connection, session: Session
    ) -> None:
        make_source(connection, texts(3))
        pipeline = into_column(connection, max_attempts=1)
        embed(connection, session, pipeline)
        connection.execute("alter table reports add constraint kept check (embedding is not null)")
        connection.execute("update reports set body = '' where id = 1")
        enqueue(connection, pipeline, Selection())
        drain(session, pipeline, chunker=whole_chunker())
        ((key, error),) = connection.execute("select key, last_error from pgembed.dead_letters")
        assert key == "1"
        assert 'violates check constraint "kept"' in error
        connection.execute("alter table reports drop constraint kept")
        assert retry(connection, pipeline) == 1
        drain(session, pipeline, chunker=whole_chunker())
        assert_column_converged(connection, pipeline)

    def test_vectors_of_which_none_may_be_removed_pause(
        self, connection: Connection, session: Session
    ) -> None:
        make_source(connection, texts(10))
        pipeline = into_column(connection)
        embed(connection, session, pipeline)
        connection.execute("alter table reports add constraint kept check (embedding is not null)")
        connection.execute("update reports set body = ''")
        enqueue(connection, pipeline, Selection())
        with pytest.raises(PipelineFault, match="violates check constraint"):
            work_once(session, pipeline, chunker=whole_chunker())

    def test_role_that_a_policy_applies_to_embeds_nothing(
        self, connection: Connection, conninfo: str
    ) -> None:
        make_source(connection, texts(4))
        pipeline = into_column(connection)
        connection.execute("create role embedder login password 'x'")
        try:
            connection.execute("grant all on all tables in schema pgembed to embedder")
            connection.execute("grant usage on schema pgembed to embedder")
            connection.execute("grant select, update (embedding) on reports to embedder")
            connection.execute("alter table reports enable row level security")
            connection.execute("create policy reading on reports for select using (true)")
            connection.execute("create policy writing on reports for update using (id <> 2)")
            enqueue(connection, pipeline, Selection())
            with (
                open_session(make_conninfo(conninfo, user="embedder", password="x")) as session,
                pytest.raises(RoleFault, match="row-level security"),
            ):
                work_once(session, pipeline, chunker=whole_chunker())
            assert connection.execute("select count(embedding) from reports").fetchone() == (0,)
        finally:
            connection.execute("drop owned by embedder cascade")
            connection.execute("drop role embedder")

    def test_trigger_that_touches_the_text_does_not_embed_for_ever(
        self, connection: Connection, session: Session
    ) -> None:
        """With updated_at in its document, a record would change by being embedded."""
        make_source(connection, texts(9))
        connection.execute("alter table reports add updated_at timestamptz default now()")
        connection.execute(
            "create function touch() returns trigger language plpgsql as $$"
            " begin new.updated_at = clock_timestamp(); return new; end $$"
        )
        connection.execute(
            "create trigger touch before update on reports for each row execute function touch()"
        )
        harmless = into_column(connection, name="harmless", column="other")
        embed(connection, session, harmless)
        assert_column_converged(connection, harmless)
        assert enqueue(connection, harmless, Selection()) == 0
        pipeline = into_column(connection, template="$body $updated_at")
        enqueue(connection, pipeline, Selection())
        with pytest.raises(PipelineFault, match="changes the text itself: a trigger"):
            work_once(session, pipeline, chunker=whole_chunker())
        assert {embedded for _, embedded in versions(connection).values()} == {False}


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
