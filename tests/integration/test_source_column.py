"""Vectors in a column of the source: created, written beside busy users, cleared and dropped."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db import locks
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import PipelineFault, RoleFault, UsageError
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.queue.dead_letters import retry
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.vector_search.query import has_vectors, search
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support.column_vectors import column, embed, versions
from tests.support.columns import assert_column_converged, into_column, whole_chunker
from tests.support.corpus import delete_records, make_source, set_text, texts
from tests.support.fakes import DIMENSIONS, POISON, unit_vector
from tests.support.rows import one_value
from tests.support.working import drain, open_session, work_once


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

    @pytest.mark.parametrize("where", ["embedding is null", "id > 0 and source.embedding is null"])
    def test_condition_that_names_the_column_of_the_vectors_is_refused(
        self, connection: Connection, where: str
    ) -> None:
        """With it, what is embedded would leave the records, and each enqueue take it away."""
        make_source(connection, texts(1))
        connection.execute("alter table reports add embedding vector(8)")
        with pytest.raises(UsageError, match="--where names embedding, which the vectors go into"):
            into_column(connection, where=where)

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
