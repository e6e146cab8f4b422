"""A column that changes its vectors beside readers, writers and workers, and by the command."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psycopg
import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import LeaseLost, PipelineFault, PipelineReplaced, UsageError
from pgqueue_embed.lifecycle.completeness import pending_records
from pgqueue_embed.lifecycle.replace_column import ColumnReplacement
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.pipeline.catalog import is_current, load_pipeline, load_pipelines
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support.altering_columns import (
    COLUMN_EMBEDDED,
    assert_column_converged_in,
    begin,
    dimensions,
    embed,
    shape,
)
from tests.support.columns import whole_chunker
from tests.support.commands import pgembed
from tests.support.conditions import terminate, wait_until
from tests.support.corpus import set_text
from tests.support.fakes import FakeDevice, unit_vector
from tests.support.working import work_once

pytestmark = pytest.mark.usefixtures("fake_next_model", "quick_switch")

PREPARED = {"reports": COLUMN_EMBEDDED}


class TestBusy:
    """A switch while others read, write and claim."""

    @pytest.mark.on_both_servers
    def test_crash_before_the_commit_changes_nothing(
        self,
        conninfo: str,
        connection: Connection,
        session: Session,
        reports: Pipeline,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        embed(session, begin(connection, reports))
        before, usual = shape(connection), ColumnReplacement.exchange

        def crash(replacement: ColumnReplacement, own: Connection) -> None:
            usual(replacement, own)
            terminate(connection, own.info.backend_pid)

        monkeypatch.setattr(ColumnReplacement, "exchange", crash)
        with connect(conninfo) as own, pytest.raises(psycopg.OperationalError):
            switch(own, reports)
        assert shape(connection) == before
        monkeypatch.setattr(ColumnReplacement, "exchange", usual)
        assert_column_converged_in(connection, switch(connection, reports))

    def test_reader_sees_old_vectors_or_new_ones_while_workers_are_busy(
        self, conninfo: str, connection: Connection, session: Session, reports: Pipeline
    ) -> None:
        successor = begin(connection, reports)
        stop = threading.Event()
        seen: list[set[int]] = []
        with ThreadPoolExecutor() as threads:
            try:
                others = [
                    threads.submit(
                        _repeat, stop, conninfo, lambda own: seen.append(dimensions(own))
                    ),
                    threads.submit(_repeat, stop, conninfo, _find_all),
                    threads.submit(_repeat, stop, conninfo, _change_one),
                    threads.submit(_repeat, stop, conninfo, lambda _own: _work_a_little(session)),
                ]
                wait_until(
                    lambda: pending_records(connection, successor) == 0,
                    "all is embedded",
                )
                switched = switch(connection, reports, patience_seconds=20)
                count = len(seen)
                wait_until(
                    lambda: len(seen) > count + 5 or any(each.done() for each in others),
                    "the reader reads on",
                )
            finally:
                stop.set()
            for other in others:
                other.result()
        assert [each for number, each in enumerate(seen) if seen[number - 1] != each] in (
            [{8}, {4}],
            [{4}],
        )
        enqueue(connection, switched, Selection())
        embed(session, switched)
        assert_column_converged_in(connection, switched)

    def test_claim_that_was_begun_before_the_switch_writes_nothing(
        self, connection: Connection, session: Session, reports: Pipeline
    ) -> None:
        successor = begin(connection, reports)
        embed(session, successor)
        switched = switch(connection, reports)
        set_text(connection, reports.source, 1, "changed")
        enqueue(connection, switched, Selection())
        before = dimensions(connection)
        with pytest.raises(PipelineFault, match="embedding_next"):
            work_once(session, successor, FakeDevice(dimensions=4), chunker=whole_chunker())
        # The loop looks whether that is a switch's doing, before it pauses the pipeline.
        assert not is_current(connection, successor)
        assert dimensions(connection) == before
        embed(session, switched)
        assert_column_converged_in(connection, switched)


def _repeat(stop: threading.Event, conninfo: str, action: Callable[[Connection], object]) -> None:
    with connect(conninfo) as own:
        while not stop.is_set():
            action(own)


def _find_all(own: Connection) -> None:
    """Search as a program does; the record that is being changed may wait for its new vector."""
    current = load_pipeline(own, "reports")
    vector = unit_vector("q", current.dimensions)
    with suppress(PipelineReplaced):
        hits = search(own, current, vector, SearchRequest(limit=50, threshold=-1))
        assert {hit.key for hit in hits} >= set(range(2, 21))


def _change_one(own: Connection) -> None:
    own.execute("update public.reports set body = 'at ' || clock_timestamp() where id = 1")
    with suppress(PipelineReplaced):
        enqueue(own, load_pipeline(own, "reports"), Selection())


def _work_a_little(session: Session) -> None:
    for pipeline in load_pipelines(session.side):
        with suppress(LeaseLost, PipelineFault):
            device = FakeDevice(dimensions=pipeline.dimensions)
            work_once(session, pipeline, device, chunker=whole_chunker())


def test_command_alters_and_switches(
    conninfo: str, connection: Connection, session: Session, reports: Pipeline
) -> None:
    begun = pgembed(conninfo, "alter", "reports", "--template", "$body!")
    assert "made reports (next): $body! → public.reports.embedding_next" in begun.stdout
    embed(session, load_pipeline(connection, "reports (next)"))
    switched = pgembed(conninfo, "alter", "reports", "--switch")
    assert switched.stdout.startswith("reports uses its new vectors, in public.reports.embedding;")
    pgembed(conninfo, "alter", "reports", "--template", "$body?")
    given_up = pgembed(conninfo, "alter", "reports", "--abort").stdout
    assert given_up == "gave up reports (next) and dropped public.reports.embedding_next\n"
    dropped = pgembed(conninfo, "drop", "reports", "--delete-vectors", "--yes").stdout
    assert dropped == (
        "removed pipeline reports; the vectors in public.reports.embedding were deleted\n"
    )


def test_switch_of_a_column_happens_once(
    conninfo: str, connection: Connection, session: Session, reports: Pipeline
) -> None:
    embed(session, begin(connection, reports))
    barrier = threading.Barrier(3)

    def run() -> str:
        with connect(conninfo) as own:
            barrier.wait(20)
            try:
                return switch(own, reports).name
            except UsageError as error:
                return str(error)

    with ThreadPoolExecutor() as threads:
        outcomes = [each.result(30) for each in [threads.submit(run) for _ in range(3)]]
    assert outcomes.count("reports") == 1, outcomes
    assert_column_converged_in(connection, load_pipeline(connection, "reports"))
