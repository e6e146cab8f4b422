"""Claims that kill their process, and how the record that does it is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.claim.process import Session
from pgqueue_embed.claim.size import ClaimSize
from pgqueue_embed.db.session import Connection
from pgqueue_embed.embedding import Embedded
from pgqueue_embed.ledger.commits import ROLL_UP
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.worker.crashes import record_crash
from pgqueue_embed.worker.registry import WorkerIdentity, WorkerReport, register, report_work
from tests.support.claims import (
    count,
    items,
    once,
    queue_keys,
    states,
)
from tests.support.corpus import make_source, set_text, texts
from tests.support.fakes import FakeDevice
from tests.support.oracle import assert_converged
from tests.support.pipelines import REPORTS, make_pipeline, queue_documents
from tests.support.rows import one_value
from tests.support.working import drain, work_once

KILLER = "KILLER"
IDENTITY = WorkerIdentity(device="cpu", precision="fp32", model="", concurrency=1, pipeline_ids=[])
NOTHING_DONE = WorkerReport(
    records=0,
    fp32_chunks=0,
    leases_lost=0,
    commit_seconds_ago=None,
    last_error=None,
    error_seconds_ago=None,
)


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

    @pytest.mark.on_both_servers
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
        die_of_one_record(connection, session, pipeline)
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
    @pytest.mark.on_both_servers
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

    @pytest.mark.on_both_servers
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
        work_id = one_value(connection, "select id from pgembed.work")
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

    def test_what_was_given_up_does_not_speak_for_the_machine_and_what_was_embedded_does(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, ["kills the process"])
        die_of_one_record(connection, session, pipeline)
        work_once(session, pipeline, alone=True)
        assert one_value(connection, "select sum(dead) from pgembed.batches") == 1
        assert not record_crash(connection, session.worker_id, "killed").settled
        set_text(connection, REPORTS, 1, "harmless")
        queue_keys(connection, pipeline, 1)
        work_once(session, pipeline)
        assert record_crash(connection, session.worker_id, "killed").settled

    def test_what_was_embedded_hours_ago_speaks_for_the_machine(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, ["harmless"])
        worker_id = register(connection, IDENTITY)
        drain(replace(session, worker_id=worker_id), pipeline)
        report_work(connection, worker_id, replace(NOTHING_DONE, records=1))
        connection.execute("update pgembed.batches set committed_at = now() - interval '2 hours'")
        connection.execute(ROLL_UP, {"pipeline_id": pipeline.id})
        assert one_value(connection, "select max(worker_id) from pgembed.batches") is None
        assert record_crash(connection, worker_id, "killed").settled

    @pytest.mark.on_both_servers
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


def die_of_one_record(connection: Connection, session: Session, pipeline: Pipeline) -> None:
    """Let it kill among others, and twice by itself: it is to be given up on by the next claim."""
    die(connection, session, pipeline)
    work_once(session, pipeline)
    for _ in range(2):
        die(connection, session, pipeline, alone=True)
        work_once(session, pipeline, alone=True)


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
