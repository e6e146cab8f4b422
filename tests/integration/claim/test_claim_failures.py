"""Failures in a claim, and whom they are charged to: a record, its pipeline, or neither."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from pgqueue_embed.chunking import ChunkedDocument, Chunker, Context
from pgqueue_embed.claim.process import Session
from pgqueue_embed.claim.size import ClaimSize
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import ModelError, PipelineFault, RecordFault
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.claims import (
    chunk_texts,
    count,
    counted,
    nothing_was_written,
    once,
    queue_keys,
    states,
)
from tests.support.corpus import delete_records, make_source, set_text, texts
from tests.support.fakes import NOT_A_NUMBER, POISON, FakeDevice, fake_chunker
from tests.support.oracle import assert_converged
from tests.support.pipelines import REPORTS, make_pipeline, queue_documents
from tests.support.rows import one_value
from tests.support.working import drain, open_session, work_once


class TestFailures:
    """Records that cannot be embedded, and only they."""

    @pytest.mark.on_both_servers
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

    @pytest.mark.on_both_servers
    def test_failed_record_waits_longer_and_longer(
        self, connection: Connection, conninfo: str, isolation: str
    ) -> None:
        del isolation
        pipeline = queue_documents(connection, [POISON])
        delays: list[float] = []
        with open_session(conninfo, retry_delay_seconds=100) as session:
            for _ in range(2):
                work_once(session, pipeline)
                delay = one_value(
                    connection,
                    "select extract(epoch from available_at - clock_timestamp())::float8"
                    " from pgembed.work",
                )
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

    @pytest.mark.on_both_servers
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

    @pytest.mark.on_both_servers
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
    @pytest.mark.on_both_servers
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
    @pytest.mark.on_both_servers
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

    @pytest.mark.on_both_servers
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

    @pytest.mark.on_both_servers
    def test_target_that_refuses_everything_faults_the_pipeline(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(20))
        connection.execute("alter table public.reports_chunks add must int not null")
        with pytest.raises(PipelineFault, match="must"):
            work_once(session, pipeline, size=ClaimSize(items=9, limit_bytes=1 << 20))
        assert nothing_was_written(connection)

    def test_many_records_that_the_target_refuses_are_theirs_if_it_takes_another(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(20))
        connection.execute("alter table public.reports_chunks add check (fulltext_id > 18)")
        done = work_once(session, pipeline, size=ClaimSize(items=9, limit_bytes=1 << 20))
        assert done is not None
        assert (done.commit.embedded, done.commit.failed) == (2, 18)


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
