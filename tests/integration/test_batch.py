"""The story of a claim, with everything that can go wrong in it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pgqueue_embed.chunking import Chunk, ChunkedDocument, Chunker, Context
from pgqueue_embed.claim.process import Session
from pgqueue_embed.claim.size import ClaimSize
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.embedding import Embedded
from pgqueue_embed.errors import LeaseLost, ModelError, PipelineFault, RecordFault
from pgqueue_embed.ledger.records import lock_records
from pgqueue_embed.local_server import LocalServer
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.target_columns import TargetColumns
from pgqueue_embed.queue.claims import add_items
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.worker.crashes import record_crash
from tests.support.conditions import (
    is_blocked,
    terminate,
    wait_until,
    wait_until_blocked,
    wait_until_gone,
)
from tests.support.corpus import delete_records, make_source, set_text, texts
from tests.support.fakes import NOT_A_NUMBER, POISON, FakeDevice, fake_chunker
from tests.support.oracle import assert_converged
from tests.support.pipelines import REPORTS, make_pipeline, queue_documents
from tests.support.working import drain, open_session, work_once

pytestmark = pytest.mark.on_both_servers

KILLER = "KILLER"


@pytest.fixture
def isolation(server: LocalServer, connection: Connection) -> str:
    """The default isolation of sessions opened from now on, the odd one on the older server."""
    isolation = "read committed" if server.major_version == 18 else "repeatable read"
    name = connection.info.dbname
    connection.execute(f"alter database {name} set default_transaction_isolation = '{isolation}'")
    return isolation


@pytest.fixture
def session(conninfo: str, isolation: str) -> Iterator[Session]:
    """What a worker loop works with."""
    with open_session(conninfo) as opened:
        told = opened.side.execute("show transaction_isolation").fetchone()
        assert told == ("read committed",), f"though it is {isolation} by default"
        yield opened


@pytest.fixture
def other(conninfo: str, session: Session) -> Iterator[Session]:
    """A second worker."""
    del session
    with open_session(conninfo, worker_id=2) as opened:
        yield opened


def queue_keys(connection: Connection, pipeline: Pipeline, *keys: int, **fields: object) -> None:
    """Queue records as a trigger does that tells of changes and deletions."""
    told = {"allow_deletes": True, **fields}
    add_items(connection, pipeline.id, [str(key) for key in keys], **told)  # type: ignore[arg-type]


def states(connection: Connection) -> dict[str, str | None]:
    return dict(connection.execute("select key, state from pgembed.records").fetchall())


def chunk_texts(connection: Connection, key: int) -> list[str]:
    query = (
        "select text_chunk from public.reports_chunks where fulltext_id = %s order by chunk_index"
    )
    return [text for (text,) in connection.execute(query, (key,))]


def count(connection: Connection, table: str) -> int:
    (rows,) = connection.execute(f"select count(*) from {table}").fetchone()
    return rows


def counted(connection: Connection) -> tuple[int, int]:
    """Return (total, pending) of the one pipeline's progress."""
    return connection.execute("select total, pending from pgembed.progress").fetchone()


def nothing_was_written(connection: Connection) -> bool:
    tables = ("records", "batches", "attempts")
    written = [count(connection, f"pgembed.{table}") for table in tables]
    return written == [0, 0, 0] and count(connection, "public.reports_chunks") == 0


class TestRecords:
    """What becomes of records of every kind when nothing goes wrong."""

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

    def test_halfvec_target(self, connection: Connection, session: Session) -> None:
        pipeline = queue_documents(connection, texts(10), vector_type="halfvec")
        drain(session, pipeline)
        column = "select pg_typeof(embedding)::text from public.reports_chunks limit 1"
        assert connection.execute(column).fetchone() == ("halfvec",)
        assert_converged(connection, "reports")

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
        names = {meaning: f'{meaning} "{{é}}"' for meaning in vars(TargetColumns())}
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


class TestChangesWhileTheModelRuns:
    """The world moves between the read and the write."""

    @pytest.mark.parametrize("text", ["Changed meanwhile.", None, POISON.lower()])
    def test_changed_record_is_queued_again_and_never_stale(
        self, connection: Connection, session: Session, text: str | None
    ) -> None:
        pipeline = queue_documents(connection, texts(3, chunks=2))
        change = once(lambda: set_text(connection, REPORTS, 2, text))
        done = work_once(session, pipeline, FakeDevice(during=change))
        assert done is not None
        assert states(connection)["2"] is None
        assert chunk_texts(connection, 2) == []
        # As it was queued: only what is queued as a change is not waited for by a switch.
        assert connection.execute("select keys, priority from pgembed.work").fetchall() == [
            (["2"], 1)
        ]
        drain(session, pipeline)
        assert_converged(connection, "reports")

    def test_embedded_record_that_changes_twice_is_never_stale(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(1))
        drain(session, pipeline)
        old = chunk_texts(connection, 1)
        set_text(connection, REPORTS, 1, "Second text.")
        queue_keys(connection, pipeline, 1, known=True)
        change = once(lambda: set_text(connection, REPORTS, 1, "Third text."))
        work_once(session, pipeline, FakeDevice(during=change))
        assert chunk_texts(connection, 1) == old
        assert counted(connection) == (1, 1)
        drain(session, pipeline)
        assert chunk_texts(connection, 1) == ["Third text."]
        assert_converged(connection, "reports")

    def test_record_that_is_deleted_meanwhile_leaves_nothing(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(3))
        delete = once(lambda: delete_records(connection, REPORTS, [2]))
        work_once(session, pipeline, FakeDevice(during=delete))
        assert_converged(connection, "reports")

    def test_record_that_comes_back_meanwhile_is_queued_again(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(2))
        delete_records(connection, REPORTS, [2])
        come_back = once(lambda: set_text(connection, REPORTS, 2, "Back again."))
        work_once(session, pipeline, FakeDevice(during=come_back))
        assert states(connection) == {"1": "embedded", "2": None}
        drain(session, pipeline)
        assert_converged(connection, "reports")

    def test_vectors_removed_meanwhile_come_back(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(2))
        drain(session, pipeline)
        queue_keys(connection, pipeline, 1, 2, known=True)
        set_text(connection, REPORTS, 2, "Makes the device run.")
        remove = once(lambda: connection.execute("delete from public.reports_chunks"))
        work_once(session, pipeline, FakeDevice(during=remove))
        drain(session, pipeline)
        assert_converged(connection, "reports")

    def test_failure_of_an_older_text_is_not_charged(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, [POISON], max_attempts=1)
        cure = once(lambda: set_text(connection, REPORTS, 1, "Cured."))
        work_once(session, pipeline, FakeDevice(during=cure))
        assert states(connection) == {"1": None}
        drain(session, pipeline)
        assert states(connection) == {"1": "embedded"}
        assert_converged(connection, "reports")

    @pytest.mark.parametrize("seen", [False, True], ids=["new", "seen before"])
    def test_second_worker_with_the_same_record_waits_and_keeps(
        self, connection: Connection, session: Session, other: Session, seen: bool
    ) -> None:
        pipeline = queue_documents(connection, texts(3))
        if seen:
            drain(session, pipeline)
            connection.execute("update public.reports set body = body || ' changed'")
            queue_keys(connection, pipeline, 1, 2, 3, known=True)
        queue_keys(connection, pipeline, 3, 2, 1, known=seen)
        first, second = FakeDevice(hold=threading.Event()), FakeDevice(hold=threading.Event())
        one = ClaimSize(items=1, limit_bytes=1 << 20)
        with ThreadPoolExecutor(2) as pool:
            early = pool.submit(work_once, session, pipeline, first, size=one)
            assert first.entered.wait(30)
            late = pool.submit(work_once, other, pipeline, second, size=one)
            assert second.entered.wait(30)
            # Hold a record as a third worker's write would: both wait, and one is first.
            with connection.transaction():
                lock_records(connection, pipeline, ["1"])
                allow(first)
                wait_until_blocked(connection, session.connection.info.backend_pid)
                allow(second)
                wait_until_blocked(connection, other.connection.info.backend_pid)
            batches = [early.result(30).commit, late.result(30).commit]  # type: ignore[union-attr]
        assert sorted(batch.unchanged for batch in batches) == [0, 3]
        assert sorted(batch.chunks > 0 for batch in batches) == [False, True]
        assert_converged(connection, "reports")

    def test_ddl_on_the_source_completes_at_once_while_the_model_runs(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(3))
        device = FakeDevice(hold=threading.Event())
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(work_once, session, pipeline, device)
            assert device.entered.wait(30)
            connection.execute("set lock_timeout = '100ms'")
            connection.execute("alter table public.reports add column extra int default 1")
            connection.execute("alter table public.reports_chunks add column extra int")
            connection.execute("create index on public.reports (body)")
            allow(device)
            running.result(30)
        assert_converged(connection, "reports")

    @pytest.mark.parametrize("table", ["reports", "reports_chunks"])
    def test_write_waits_for_a_users_lock_and_succeeds_later(
        self, connection: Connection, conninfo: str, session: Session, table: str
    ) -> None:
        pipeline = queue_documents(connection, texts(3))
        pid = session.connection.info.backend_pid
        waits: list[bool] = []

        def checkpoint() -> None:
            waits.append(is_blocked(connection, pid))

        device = FakeDevice(hold=threading.Event())
        patient = Session(**{**vars(session), "checkpoint": checkpoint})
        with connect(conninfo) as user, ThreadPoolExecutor(1) as pool:
            running = pool.submit(work_once, patient, pipeline, device)
            assert device.entered.wait(30)
            with user.transaction():
                user.execute(f"alter table public.{table} add column later int")
                allow(device)
                wait_until_blocked(connection, pid)
                so_far = len(waits)
                wait_until(lambda: len(waits) > so_far + 1, "the write has tried twice")
                assert not running.done()
            running.result(30)
        assert len(device.embedded_texts) == count(connection, "public.reports_chunks")
        assert_converged(connection, "reports")

    def test_write_loses_a_deadlock_and_the_user_never_does(
        self, connection: Connection, conninfo: str, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(2))
        device = FakeDevice(hold=threading.Event())
        pid = session.connection.info.backend_pid
        with connect(conninfo) as user, ThreadPoolExecutor(1) as pool:
            running = pool.submit(work_once, session, pipeline, device)
            assert device.entered.wait(30)
            with user.transaction():
                user.execute("lock table public.reports_chunks in access exclusive mode")
                allow(device)
                wait_until_blocked(connection, pid)
                # The worker holds the records' rows now and waits for the table.
                user.execute("update pgembed.records set last_error = 'by a user' where key = '1'")
            assert running.result(30) is not None
        assert_converged(connection, "reports")


class TestFailures:
    """Records that cannot be embedded, and only they."""

    def test_poison_is_narrowed_down_to_its_records(
        self, connection: Connection, session: Session
    ) -> None:
        documents: list[str | None] = [*texts(20, chunks=2)]
        documents[4] = documents[13] = f"Long text with {POISON} in it. {texts(1, chunks=3)[0]}"
        pipeline = queue_documents(connection, documents)
        done = work_once(session, pipeline, size=ClaimSize(items=9, limit_bytes=1 << 20))
        assert done is not None
        assert (done.commit.embedded, done.commit.failed, done.commit.dead) == (18, 2, 0)
        rows = connection.execute(
            "select keys, retrying from pgembed.work order by keys[1]::int"
        ).fetchall()
        assert rows == [(["5"], True), (["14"], True)]
        progress = "select done, pending, retrying, total, dead from pgembed.progress"
        assert connection.execute(progress).fetchone() == (18, 2, 2, 20, 0)

    def test_hopeless_record_becomes_a_dead_letter_with_its_error(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, [*texts(5), POISON], max_attempts=3)
        done = drain(session, pipeline)
        letters = connection.execute(
            "select pipeline, key, attempts, last_error, dead_at is not null"
            " from pgembed.dead_letters"
        ).fetchall()
        assert letters == [
            ("reports", "6", 3, "ValueError: the fake model chokes on this text", True)
        ]
        assert sum(claim.commit.failed for claim in done) == 3
        assert_converged(connection, "reports")

    def test_failed_record_waits_longer_and_longer(
        self, connection: Connection, conninfo: str, isolation: str
    ) -> None:
        del isolation
        pipeline = queue_documents(connection, [POISON])
        delays: list[float] = []
        with open_session(conninfo, retry_delay_seconds=100) as session:
            for _ in range(2):
                work_once(session, pipeline)
                (delay,) = connection.execute(
                    "select extract(epoch from available_at - clock_timestamp())::float8"
                    " from pgembed.work"
                ).fetchone()
                delays.append(delay)
                assert work_once(session, pipeline) is None
                connection.execute("update pgembed.work set available_at = clock_timestamp()")
        assert 70 < delays[0] < 130
        assert 145 < delays[1] < 255

    def test_attempts_start_again_when_the_text_changes(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, [POISON], max_attempts=2)
        work_once(session, pipeline)
        set_text(connection, REPORTS, 1, f"another {POISON}")
        work_once(session, pipeline)
        assert states(connection) == {"1": None}
        work_once(session, pipeline)
        assert states(connection) == {"1": "dead"}
        assert_converged(connection, "reports")

    def test_text_that_turns_to_poison_keeps_its_old_vectors_until_given_up_on(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(1), max_attempts=2)
        drain(session, pipeline)
        old = chunk_texts(connection, 1)
        set_text(connection, REPORTS, 1, POISON)
        queue_keys(connection, pipeline, 1, known=True)
        work_once(session, pipeline)
        assert states(connection) == {"1": "embedded"}
        assert counted(connection) == (1, 1)
        assert chunk_texts(connection, 1) == old
        drain(session, pipeline)
        assert states(connection) == {"1": "dead"}
        assert_converged(connection, "reports")

    def test_dead_record_is_revived_by_another_text(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, [POISON, "fine"], max_attempts=1)
        drain(session, pipeline)
        set_text(connection, REPORTS, 1, "cured")
        queue_keys(connection, pipeline, 1, known=True)
        drain(session, pipeline)
        assert states(connection) == {"1": "embedded", "2": "embedded"}
        assert_converged(connection, "reports")

    def test_gone_dead_record_leaves_nothing(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, [POISON, "fine"], max_attempts=1)
        drain(session, pipeline)
        delete_records(connection, REPORTS, [1])
        queue_keys(connection, pipeline, 1, known=True)
        drain(session, pipeline)
        assert states(connection) == {"2": "embedded"}
        assert_converged(connection, "reports")

    def test_vector_that_is_no_number_is_charged_to_its_record_only(
        self, connection: Connection, session: Session
    ) -> None:
        documents = texts(12)
        documents[7] = f"This gives {NOT_A_NUMBER}."
        pipeline = queue_documents(connection, documents, max_attempts=1)
        drain(session, pipeline)
        dead = [key for key, state in states(connection).items() if state == "dead"]
        assert dead == ["8"]
        assert_converged(connection, "reports")

    @pytest.mark.parametrize(
        "rule",
        [
            "alter table public.reports_chunks add check (text_chunk !~ 'forbidden')",
            "create unique index on public.reports_chunks"
            " ((case when text_chunk ~ 'forbidden' then 1 end))",
            "create function public.refuse() returns trigger language plpgsql as $$ begin"
            " if new.text_chunk ~ 'forbidden' then raise exception 'not in my table'; end if;"
            " return new; end $$;"
            " create trigger refuse before insert on public.reports_chunks"
            " for each row execute function public.refuse()",
            "create index on public.reports_chunks"
            " ((case when text_chunk ~ 'forbidden' then (select_long()) end))",
        ],
        ids=["check", "unique", "trigger", "index"],
    )
    def test_record_that_the_target_refuses_is_charged_alone(
        self, connection: Connection, session: Session, rule: str
    ) -> None:
        documents: list[str | None] = [*texts(30)]
        documents[3] = documents[20] = "forbidden here"
        pipeline = queue_documents(connection, documents, max_attempts=2)
        if "select_long" in rule:
            # Text that no B-tree takes: an index row has at most 2,704 bytes.
            connection.execute(
                "create function public.select_long() returns text immutable language sql as"
                " $$ select string_agg(md5(n::text), '') from generate_series(1, 500) as n $$"
            )
            rule = rule.replace("(select_long())", "public.select_long()")
        connection.execute(rule)
        drain(session, pipeline)
        letters = connection.execute("select key, attempts, last_error from pgembed.dead_letters")
        refused = {key: (attempts, error) for key, attempts, error in letters}
        assert set(refused) <= {"4", "21"}
        assert len(refused) == (1 if "unique" in rule else 2)
        assert all(
            attempts == 2 and error.startswith("the target table refused it: ")
            for attempts, error in refused.values()
        )
        assert_converged(connection, "reports")

    def test_document_that_the_chunker_refuses_is_charged_alone(
        self, connection: Connection, session: Session
    ) -> None:
        documents: list[str | None] = [*texts(10)]
        documents[2] = f"{POISON} for the chunker"
        pipeline = queue_documents(connection, documents, max_attempts=2)
        drain(session, pipeline, chunker=PoisonedChunker())
        letters = connection.execute("select key, attempts from pgembed.dead_letters").fetchall()
        assert letters == [("3", 1)]
        assert_converged(connection, "reports")

    def test_device_that_fails_its_self_test_charges_nobody(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(10))
        device = FakeDevice(broken=True, fault=ModelError("the device computes nonsense"))
        with pytest.raises(ModelError, match="nonsense"):
            work_once(session, pipeline, device)
        assert nothing_was_written(connection)
        drain(session, pipeline)
        assert_converged(connection, "reports")

    def test_abandoned_claim_charges_nobody(self, connection: Connection, session: Session) -> None:
        class Abandoned(BaseException):
            pass

        pipeline = queue_documents(connection, texts(3))

        def leave() -> None:
            raise Abandoned

        with pytest.raises(Abandoned):
            work_once(session, pipeline, FakeDevice(during=leave))
        assert nothing_was_written(connection)
        drain(session, pipeline)
        assert_converged(connection, "reports")


class TestFaultsOfThePipeline:
    """A table or column that is gone pauses the pipeline: nothing is charged, nothing lost."""

    @pytest.mark.parametrize("when", ["before", "while the model runs"])
    @pytest.mark.parametrize(
        ("fault", "mending"),
        [
            (
                "alter table {source} rename column body to text",
                "alter table {source} rename column text to body",
            ),
            ("alter table {source} rename to gone", "alter table public.gone rename to reports"),
            (
                "alter table {target} rename to gone",
                "alter table public.gone rename to reports_chunks",
            ),
            (
                "alter table {target} rename column embedding to e",
                "alter table {target} rename column e to embedding",
            ),
            (
                "alter table {source} alter id type text",
                "alter table {source} alter id type bigint using id::bigint",
            ),
        ],
        ids=["text column", "source", "target", "vector column", "key type"],
    )
    def test_what_is_gone_faults_the_pipeline(
        self,
        connection: Connection,
        session: Session,
        when: str,
        fault: str,
        mending: str,
    ) -> None:
        pipeline = queue_documents(connection, texts(4))
        names = {"source": "public.reports", "target": "public.reports_chunks"}
        strike = once(lambda: connection.execute(fault.format(**names)))
        if when == "before":
            strike()
        with pytest.raises(PipelineFault) as caught:
            work_once(session, pipeline, FakeDevice(during=strike))
        assert "\n" not in str(caught.value)
        connection.execute(mending.format(**names))
        assert nothing_was_written(connection)
        drain(session, pipeline)
        assert_converged(connection, "reports")

    def test_key_beyond_the_pipelines_type_faults_the_pipeline(
        self, connection: Connection, session: Session
    ) -> None:
        make_source(connection, texts(2), key_type="integer")
        pipeline = make_pipeline(connection)
        enqueue(connection, pipeline, Selection())
        connection.execute("alter table public.reports alter id type bigint")
        set_text(connection, REPORTS, 3_000_000_000, "beyond an integer")
        queue_keys(connection, pipeline, 3_000_000_000)
        with pytest.raises(PipelineFault, match="out of range"):
            drain(session, pipeline)
        assert nothing_was_written(connection)

    def test_view_that_fails_on_a_record_faults_the_pipeline(
        self, connection: Connection, session: Session
    ) -> None:
        make_source(connection, texts(3), table="base")
        connection.execute(
            "create view public.reports as"
            " select id, (100 / (id - 2))::text as body from public.base"
        )
        pipeline = make_pipeline(connection)
        queue_keys(connection, pipeline, 1, 2, 3)
        with pytest.raises(PipelineFault, match="division by zero"):
            drain(session, pipeline)
        assert nothing_was_written(connection)

    def test_key_that_fits_no_index_but_the_sources_is_its_own_dead_letter(
        self, connection: Connection, session: Session
    ) -> None:
        """An index row has at most 2,704 bytes, and the target's holds the chunk's index too."""
        make_source(connection, key_type="text")
        pipeline = make_pipeline(connection)
        characters = [chr(0x21 + byte % 93) for byte in random.Random(7).randbytes(2690)]
        long, too_long = "".join(characters[:2680]), "".join(characters)
        for key in (long, too_long):
            set_text(connection, REPORTS, key, "text")
        enqueue(connection, pipeline, Selection())
        drain(session, pipeline)
        assert_converged(connection, "reports")
        dead = connection.execute("select key, last_error from pgembed.dead_letters").fetchall()
        assert [key for key, _ in dead] == [too_long]
        assert "index row size" in dead[0][1]
        connection.execute("delete from reports where id = %s", (too_long,))
        enqueue(connection, pipeline, Selection())
        drain(session, pipeline)
        assert_converged(connection, "reports")
        assert count(connection, "pgembed.dead_letters") == 0

    def test_target_that_refuses_everything_faults_the_pipeline(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(20))
        connection.execute("alter table public.reports_chunks add must int not null")
        with pytest.raises(PipelineFault, match="must"):
            work_once(session, pipeline, size=ClaimSize(items=9, limit_bytes=1 << 20))
        assert nothing_was_written(connection)


class TestLostConnections:
    """A claim whose connection ends is rolled back, and charges nobody."""

    @pytest.mark.parametrize("lost", ["connection", "side"])
    def test_connection_lost_in_mid_claim_rolls_back(
        self, connection: Connection, conninfo: str, isolation: str, lost: str
    ) -> None:
        del isolation
        pipeline = queue_documents(connection, texts(5))
        with open_session(conninfo) as session:
            ends = getattr(session, lost).info.backend_pid

            def cut() -> None:
                terminate(connection, ends)

            if lost == "connection":
                with pytest.raises(LeaseLost):
                    work_once(session, pipeline, FakeDevice(during=cut))
                assert nothing_was_written(connection)
            else:
                # The second connection is not needed any more once the source is read.
                assert work_once(session, pipeline, FakeDevice(during=once(cut))) is not None
        with open_session(conninfo) as session:
            drain(session, pipeline)
        assert_converged(connection, "reports")

    def test_both_connections_lost_leave_an_orphan_that_counts_for_nothing(
        self, connection: Connection, conninfo: str
    ) -> None:
        pipeline = queue_documents(connection, texts(2))
        with open_session(conninfo) as session:
            pids = [each.info.backend_pid for each in (session.connection, session.side)]

            def cut() -> None:
                for pid in pids:
                    terminate(connection, pid)

            with pytest.raises(LeaseLost):
                work_once(session, pipeline, FakeDevice(during=cut))
        assert count(connection, "pgembed.attempts") == 1
        with open_session(conninfo, worker_id=2) as session:
            drain(session, pipeline)
        assert_converged(connection, "reports")

    def test_lease_that_runs_out_while_the_model_hangs_frees_the_work(
        self, connection: Connection, conninfo: str
    ) -> None:
        pipeline = queue_documents(connection, texts(3))
        with open_session(conninfo, lease_seconds=1) as hung, open_session(conninfo) as other:
            pid = hung.connection.info.backend_pid

            def hang() -> None:
                wait_until_gone(connection, pid)
                drain(other, pipeline)

            with pytest.raises(LeaseLost):
                work_once(hung, pipeline, FakeDevice(during=hang))
        assert_converged(connection, "reports")


class TestDeaths:
    """Worker processes that die: whoever is to blame is found, and nobody else pays."""

    def test_death_sets_the_items_apart_and_charges_no_record(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(16))
        assert items(connection) == [(8, False, 0), (8, False, 0)]
        die(connection, session, pipeline)
        assert items(connection) == [(8, False, 0), (8, False, 0)]
        done = work_once(session, pipeline)
        assert done is not None
        assert done.rate is None
        assert items(connection) == [(8, True, 1), (8, True, 1)]
        assert work_once(session, pipeline) is None
        drain(session, pipeline)
        assert_converged(connection, "reports")

    def test_retry_that_is_left_over_is_a_retry_still(
        self, connection: Connection, session: Session
    ) -> None:
        make_source(connection, texts(2))
        pipeline = make_pipeline(connection)
        queue_keys(connection, pipeline, 1)
        queue_keys(connection, pipeline, 2, retrying=True)
        work_once(session, pipeline, size=ClaimSize(items=9, limit_bytes=1))
        left = connection.execute("select keys, retrying from pgembed.work").fetchall()
        assert left == [(["2"], True)]

    def test_death_alone_splits_the_item_into_sixteen(
        self, connection: Connection, session: Session
    ) -> None:
        make_source(connection, texts(100))
        pipeline = make_pipeline(connection)
        queue_keys(connection, pipeline, *range(1, 101))
        die(connection, session, pipeline)
        work_once(session, pipeline)
        die(connection, session, pipeline, alone=True)
        work_once(session, pipeline, alone=True)
        assert items(connection) == [(7, True, 2)] * 14 + [(2, True, 2)]
        drain(session, pipeline)
        assert_converged(connection, "reports")

    def test_single_record_is_given_up_on_after_three_deaths(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, ["kills the process"])
        die(connection, session, pipeline)
        work_once(session, pipeline)
        for _ in range(2):
            die(connection, session, pipeline, alone=True)
            work_once(session, pipeline, alone=True)
        assert states(connection) == {}
        device = FakeDevice()
        work_once(session, pipeline, device, alone=True)
        assert device.embedded_texts == []
        letter = "select key, last_error from pgembed.dead_letters"
        assert connection.execute(letter).fetchall() == [
            ("1", "the worker process died 3 times on this record")
        ]
        assert_converged(connection, "reports")

    @pytest.mark.parametrize("records", [2, 16, 17, 256])
    def test_only_the_record_that_kills_is_given_up_on(
        self, connection: Connection, session: Session, records: int
    ) -> None:
        """A worker that dies whenever it holds one certain record, from beginning to end."""
        documents = texts(records)
        documents[records // 2 - 1] = f"This is the {KILLER}."
        make_source(connection, documents)
        pipeline = make_pipeline(connection)
        queue_keys(connection, pipeline, *range(1, records + 1))
        deaths = work_with_killer(connection, session, pipeline)
        dead = [key for key, state in states(connection).items() if state == "dead"]
        assert dead == [str(records // 2)]
        assert 3 <= deaths <= 5
        assert_converged(connection, "reports")

    def test_pardoned_item_is_embedded_like_any_other(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, ["innocent"])
        die(connection, session, pipeline)
        drain(session, pipeline)
        assert states(connection) == {"1": "embedded"}
        assert_converged(connection, "reports")

    def test_bystander_of_three_deaths_is_tried_by_itself(
        self, connection: Connection, session: Session
    ) -> None:
        """Workers may hold a record one after the other, and all die, before a death is known."""
        pipeline = queue_documents(connection, ["innocent"])
        (work_id,) = connection.execute("select id from pgembed.work").fetchone()
        connection.execute(
            "insert into pgembed.attempts (work_id, worker_id, claim_xid, died_at)"
            " select %s, 1, pg_current_xact_id(), clock_timestamp() from generate_series(1, 3)",
            (work_id,),
        )
        drain(session, pipeline)
        assert states(connection) == {"1": "embedded"}
        assert_converged(connection, "reports")

    def test_condemned_record_whose_text_changed_is_tried_again(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, ["kills"])
        queue_deaths(connection, 3)
        change = once(lambda: set_text(connection, REPORTS, 1, "harmless"))
        checked = Session(**{**vars(session), "checkpoint": change})
        work_once(checked, pipeline, alone=True)
        drain(session, pipeline)
        assert states(connection) == {"1": "embedded"}
        assert_converged(connection, "reports")

    def test_orphans_of_a_living_worker_are_not_deaths(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(3))
        connection.execute(
            "insert into pgembed.attempts (work_id, worker_id, claim_xid)"
            " select id, 9, '3' from pgembed.work"
        )
        done = work_once(session, pipeline)
        assert done is not None
        assert done.rate is not None
        assert_converged(connection, "reports")


class PoisonedChunker:
    """A chunker that cannot take documents with poison in them."""

    def __init__(self) -> None:
        self._chunker: Chunker = fake_chunker()

    def chunk(
        self,
        documents: Sequence[str],
        contexts: Sequence[Context] | None = None,
        *,
        on_progress: Callable[[], None] = lambda: None,
    ) -> list[ChunkedDocument]:
        del contexts, on_progress
        for document in documents:
            if POISON in document:
                raise RecordFault("one character has more tokens than a chunk")
        return self._chunker.chunk(documents)


def once(action: Callable[[], object]) -> Callable[[], None]:
    """Return a function that runs `action` at its first call only."""
    done = threading.Event()

    def act() -> None:
        if not done.is_set():
            done.set()
            action()

    return act


def allow(device: FakeDevice) -> None:
    assert device.hold is not None
    device.hold.set()


def items(connection: Connection) -> list[tuple[int, bool, int]]:
    return connection.execute(
        "select records, alone, deaths from pgembed.work order by id"
    ).fetchall()


class Crash(BaseException):
    """The end of a worker process."""


class KillingDevice(FakeDevice):
    """Takes the process with it when it gets a text with `marker`."""

    def __init__(self, session: Session, marker: str = "") -> None:
        super().__init__()
        self._side = session.side
        self._marker = marker

    def embed(self, chunks: Sequence[Chunk], **options: Any) -> Embedded:
        if any(self._marker in chunk.text for chunk in chunks):
            self._side.execute("begin")  # nothing that this process does now is committed
            raise Crash
        return super().embed(chunks, **options)


def crashes(
    connection: Connection, session: Session, pipeline: Pipeline, device: KillingDevice, alone: bool
) -> bool:
    """Process one claim; returns whether it killed the process.

    What a crash leaves behind is a claim rolled back, and its attempts, which the supervisor
    marks.
    """
    try:
        work_once(session, pipeline, device, alone=alone)
    except Crash:
        session.side.execute("rollback")
        assert count(connection, "pgembed.attempts") > 0
        record_crash(connection, session.worker_id, "killed")
        return True
    return False


def die(
    connection: Connection, session: Session, pipeline: Pipeline, *, alone: bool = False
) -> None:
    """Let the worker process of `session` crash in the middle of a claim."""
    assert crashes(connection, session, pipeline, KillingDevice(session), alone)


def work_with_killer(connection: Connection, session: Session, pipeline: Pipeline) -> int:
    """Work as a supervised worker does, dying of every text with KILLER; returns the deaths."""
    device = KillingDevice(session, KILLER)
    deaths = 0
    for _ in range(200):
        waiting = connection.execute("select bool_or(alone) from pgembed.work").fetchone()
        if waiting == (None,):
            return deaths
        deaths += crashes(connection, session, pipeline, device, alone=waiting == (True,))
    raise AssertionError("the queue does not drain")


def queue_deaths(connection: Connection, deaths: int) -> None:
    connection.execute("update pgembed.work set alone = true, deaths = %s", (deaths,))


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
