"""The course of a claim: what becomes of records and tables of every kind."""

from __future__ import annotations

from typing import Any

import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.claim.size import ClaimSize
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import ModelError
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.target_columns import TargetColumns
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.claims import (
    chunk_texts,
    count,
    queue_keys,
    states,
)
from tests.support.corpus import delete_records, make_source, set_text, texts
from tests.support.fakes import POISON, FakeDevice
from tests.support.oracle import assert_converged
from tests.support.pipelines import REPORTS, make_pipeline, queue_documents
from tests.support.working import drain, open_session, work_once


class TestRecords:
    """What becomes of records of every kind when nothing goes wrong."""

    @pytest.mark.on_both_servers
    def test_every_record_is_embedded_with_its_chunks(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(300, chunks=3))
        done = drain(session, pipeline)
        assert_converged(connection, "reports")
        assert sum(claim.commit.embedded for claim in done) == 300
        assert sum(claim.commit.chunks for claim in done) == count(
            connection, "public.reports_chunks"
        )

    def test_null_empty_and_blank_texts_are_empty_and_not_gone(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, [None, "", "  \n\t ", "\u00a0\u3000", "text"])
        drain(session, pipeline)
        assert states(connection) == {**dict.fromkeys("1234", "empty"), "5": "embedded"}
        assert_converged(connection, "reports")

    def test_text_that_becomes_empty_loses_its_chunks(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(2))
        drain(session, pipeline)
        set_text(connection, REPORTS, 1, None)
        queue_keys(connection, pipeline, 1, known=True)
        drain(session, pipeline)
        assert states(connection) == {"1": "empty", "2": "embedded"}
        assert_converged(connection, "reports")

    @pytest.mark.on_both_servers
    def test_gone_record_leaves_nothing_behind(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(3))
        drain(session, pipeline)
        delete_records(connection, REPORTS, [2, 3])
        queue_keys(connection, pipeline, 2, 3, 99, known=True)
        device = FakeDevice()
        drain(session, pipeline, device)
        assert device.embedded_texts == []
        assert states(connection) == {"1": "embedded"}
        assert_converged(connection, "reports")

    def test_changed_text_replaces_its_chunks(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(2, chunks=4))
        drain(session, pipeline)
        set_text(connection, REPORTS, 1, "Short now.")
        queue_keys(connection, pipeline, 1, known=True)
        drain(session, pipeline)
        assert chunk_texts(connection, 1) == ["Short now."]
        assert_converged(connection, "reports")

    @pytest.mark.on_both_servers
    def test_unchanged_record_is_neither_fetched_nor_embedded(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, [*texts(20), None])
        drain(session, pipeline)
        version = "select max(xmin::text::bigint) from pgembed.records"
        written = connection.execute(version).fetchone()
        queue_keys(connection, pipeline, *range(1, 22), known=True)
        device = FakeDevice()
        (done,) = drain(session, pipeline, device)
        assert device.embedded_texts == []
        assert (done.commit.unchanged, done.commit.chunks, done.commit.tokens) == (21, 0, 0)
        assert connection.execute(version).fetchone() == written
        assert_converged(connection, "reports")

    def test_unchanged_record_is_embedded_again_if_asked(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, [*texts(3), None])
        drain(session, pipeline)
        queue_keys(connection, pipeline, 1, 2, 3, 4, known=True, embed_again=True)
        device = FakeDevice()
        drain(session, pipeline, device)
        assert len(device.embedded_texts) >= 3
        assert_converged(connection, "reports")

    def test_one_item_that_asks_for_it_is_enough_to_embed_again(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(1))
        drain(session, pipeline)
        for again in (False, True, False):
            queue_keys(connection, pipeline, 1, known=True, embed_again=again)
        device = FakeDevice()
        drain(session, pipeline, device)
        assert device.embedded_texts != []
        assert_converged(connection, "reports")

    def test_vectors_removed_by_hand_come_back(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(3, chunks=3))
        drain(session, pipeline)
        connection.execute(
            "delete from public.reports_chunks where fulltext_id = 1 and chunk_index = 0"
        )
        queue_keys(connection, pipeline, 1, 2, 3, known=True)
        drain(session, pipeline)
        assert_converged(connection, "reports")

    def test_key_that_is_queued_twice_is_embedded_once(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(5))
        queue_keys(connection, pipeline, 3, 3, 2)
        queue_keys(connection, pipeline, 3)
        device = FakeDevice()
        drain(session, pipeline, device)
        assert len(device.embedded_texts) == count(connection, "public.reports_chunks")
        assert_converged(connection, "reports")

    @pytest.mark.on_both_servers
    def test_text_beyond_the_byte_limit_is_put_back(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(40, chunks=6))
        small = ClaimSize(items=9, limit_bytes=3000)
        device = FakeDevice()
        done = work_once(session, pipeline, device, size=small)
        assert done is not None
        assert 1 < done.commit.records < 30
        pending = "select sum(records) from pgembed.work"
        assert connection.execute(pending).fetchone() == (40 - done.commit.records,)
        drain(session, pipeline, device, size=small)
        assert len(device.embedded_texts) == count(connection, "public.reports_chunks")
        assert_converged(connection, "reports")

    def test_record_larger_than_the_byte_limit_is_embedded_all_the_same(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, [texts(1, chunks=50)[0], *texts(3)])
        drain(session, pipeline, size=ClaimSize(items=1, limit_bytes=10))
        assert_converged(connection, "reports")

    def test_claim_without_text_works_without_the_device(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, [None, ""])
        drain(session, pipeline, FakeDevice(broken=True, fault=ModelError("broken")))
        assert_converged(connection, "reports")

    def test_nothing_to_claim_is_none(self, connection: Connection, session: Session) -> None:
        pipeline = queue_documents(connection, [])
        assert work_once(session, pipeline) is None

    @pytest.mark.on_both_servers
    def test_another_generation_embeds_everything_again(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, [*texts(3), None])
        drain(session, pipeline)
        connection.execute("update pgembed.pipelines set generation = 2")
        queue_keys(connection, pipeline, 1, 2, 3, 4, known=True)
        device = FakeDevice()
        drain(session, load_pipeline(connection, "reports"), device)
        assert len(device.embedded_texts) >= 3
        assert connection.execute("select distinct generation from pgembed.records").fetchall() == [
            (2,)
        ]
        assert_converged(connection, "reports")


class TestTables:
    """Tables of the user's, as odd as PostgreSQL allows."""

    @pytest.mark.on_both_servers
    def test_halfvec_target(self, connection: Connection, session: Session) -> None:
        pipeline = queue_documents(connection, texts(10), vector_type="halfvec")
        drain(session, pipeline)
        column = "select pg_typeof(embedding)::text from public.reports_chunks limit 1"
        assert connection.execute(column).fetchone() == ("halfvec",)
        assert_converged(connection, "reports")

    @pytest.mark.on_both_servers
    def test_names_with_quotes_spaces_and_braces(
        self, connection: Connection, session: Session
    ) -> None:
        schema = 'my "schema" {x}'
        connection.execute('create schema "my ""schema"" {x}"')
        source = make_source(
            connection,
            texts(20, chunks=2),
            schema=schema,
            table="Reports; drop table x --",
            id_field='the "id" {keys}',
            text_field="文本 {id}",
        )
        names: dict[str, Any] = {meaning: f'{meaning} "{{é}}"' for meaning in vars(TargetColumns())}
        names["fulltext_id"] = ('the "key" {é}',)
        pipeline = make_pipeline(
            connection,
            source,
            name='Ünïcode\'s "name" %s',
            id_field='the "id" {keys}',
            text_field="文本 {id}",
            target=Table(schema=schema, name="chunks of 'reports'"),
            columns=TargetColumns(**names),
        )
        enqueue(connection, pipeline, Selection(where="\"文本 {id}\" like '%Report%'"))
        drain(session, pipeline)
        assert_converged(connection, pipeline.name)

    def test_longest_names_that_there_are(self, connection: Connection, session: Session) -> None:
        source = make_source(connection, texts(2), table="t" * 63, id_field="i" * 63)
        target = Table(schema="public", name="c" * 63)
        columns = TargetColumns(fulltext_id=("f" * 63,), embedding="e" * 63)
        pipeline = make_pipeline(
            connection, source, id_field="i" * 63, target=target, columns=columns
        )
        enqueue(connection, pipeline, Selection())
        drain(session, pipeline)
        assert_converged(connection, "reports")

    @pytest.mark.on_both_servers
    def test_partitioned_source(self, connection: Connection, session: Session) -> None:
        connection.execute(
            "create table public.reports (id int primary key, body text) partition by range (id);"
            "create table public.low partition of public.reports for values from (0) to (50);"
            "create table public.high partition of public.reports for values from (50) to (999);"
        )
        connection.execute(
            "insert into public.reports select n, n::text from generate_series(1, 99) n"
        )
        pipeline = make_pipeline(connection)
        enqueue(connection, pipeline, Selection(), slice_records=20)
        drain(session, pipeline)
        assert_converged(connection, "reports")

    def test_row_that_the_user_added_to_the_target_does_not_block_a_record(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(2))
        connection.execute(
            "insert into public.reports_chunks (fulltext_id, chunk_id, chunk_index, text_chunk,"
            " start_char, end_char, tokens, embedding)"
            " values (1, '1_0', 0, 'stale', 0, 5, 1, '[1,0,0,0,0,0,0,0]')"
        )
        drain(session, pipeline)
        assert_converged(connection, "reports")


@pytest.mark.on_both_servers
def test_text_that_failed_and_was_changed_back_leaves_no_charge(
    conninfo: str, connection: Connection
) -> None:
    source = make_source(connection, ["A pump failed."])
    pipeline = make_pipeline(connection, source)
    with open_session(conninfo) as session:
        enqueue(connection, pipeline, Selection())
        drain(session, pipeline)
        set_text(connection, source, 1, f"This is {POISON}.")
        enqueue(connection, pipeline, Selection())
        work_once(session, pipeline)
        set_text(connection, source, 1, "A pump failed.")
        drain(session, pipeline)
    assert_converged(connection, "reports")


def test_chinese_text_is_measured_in_bytes_as_its_limit_is(
    conninfo: str, connection: Connection
) -> None:
    document = "设备在使用过程中突然停止工作。"
    make_source(connection, [document])
    pipeline = make_pipeline(connection)
    enqueue(connection, pipeline, Selection())
    with open_session(conninfo) as session:
        done = work_once(session, pipeline)
    assert done is not None
    assert done.rate is not None
    assert done.rate.text_bytes == len(document.encode())
    assert done.rate.items == 1
