"""A switch of generations: nobody reads a mixture, and whoever dies or waits leaves it whole."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psycopg
import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import (
    LeaseLost,
    NotFound,
    PipelineFault,
    PipelineReplaced,
    UsageError,
)
from pgqueue_embed.lifecycle import switch as switching
from pgqueue_embed.lifecycle.alter import Changes, abort
from pgqueue_embed.lifecycle.cleanup import finish
from pgqueue_embed.lifecycle.completeness import NotComplete, pending_records
from pgqueue_embed.lifecycle.replace_table import TableReplacement
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.pipeline.catalog import (
    is_current,
    load_pipeline,
    load_pipelines,
)
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.queue.housekeeping import clean_up
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support.altering import (
    REPORTS_EMBEDDED,
    begin,
    embed,
    signature,
)
from tests.support.claims import allow
from tests.support.conditions import terminate, wait_until, wait_until_blocked
from tests.support.corpus import set_text, texts
from tests.support.fakes import FakeDevice, fake_chunker, unit_vector
from tests.support.oracle import assert_converged
from tests.support.rows import one_value
from tests.support.working import open_session, work_once

pytestmark = pytest.mark.usefixtures("fake_next_model", "quick_switch")


PREPARED = {"reports": REPORTS_EMBEDDED}


# Readers


def test_searcher_never_sees_an_empty_or_mixed_result_while_writers_and_workers_are_busy(
    conninfo: str, connection: Connection, session: Session, reports: Pipeline
) -> None:
    old, successor = signature(connection), begin(connection, reports)
    seen: list[str] = []
    stop = threading.Event()
    errors: list[Exception] = []
    actions = (lambda own: seen.append(signature(own)), find_a_hundred, touch)
    threads = [
        *(repeating(action, conninfo, stop, errors) for action in actions),
        threading.Thread(target=work_until, args=(conninfo, stop, errors)),
    ]
    for thread in threads:
        thread.start()
    try:
        wait_until(
            lambda: errors or pending_records(connection, successor) == 0,
            "all is embedded",
        )
        assert errors == []
        switch(connection, reports, patience_seconds=30)
        new = signature(connection)
        count = len(seen)
        wait_until(lambda: len(seen) > count + 5, "the reader reads on")
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    assert errors == []
    assert set(seen) == {old, new}
    assert sorted(seen, key=[old, new].index) == seen
    embed(session, load_pipeline(connection, "reports"))
    assert_converged(connection, "reports")


def repeating(
    action: Callable[[Connection], None],
    conninfo: str,
    stop: threading.Event,
    errors: list[Exception],
) -> threading.Thread:
    """Return a thread that repeats `action` on a connection of its own until `stop`."""

    def run() -> None:
        try:
            with connect(conninfo) as own:
                while not stop.is_set():
                    action(own)
        except Exception as error:  # noqa: BLE001 (told by the test)
            errors.append(error)

    return threading.Thread(target=run)


def find_a_hundred(own: Connection) -> None:
    """Search as a program does that reads the pipeline anew for each search."""
    pipeline = load_pipeline(own, "reports")
    try:
        hits = search(own, pipeline, unit_vector("x"), SearchRequest(limit=100, threshold=-1))
    except PipelineReplaced:
        return
    assert len(hits) == 100


def touch(own: Connection) -> None:
    """Queue a record for both generations, as captured changes are; what is read stays the same.

    It waits its turn, or on a busy machine the successor would never be seen with nothing to do.
    """
    own.execute(
        "insert into pgembed.work (pipeline_id, keys, records, priority, known, embed_again)"
        " select id, '{7}', 1, 0, true, true from pgembed.pipelines"
        " where not exists (select from pgembed.work where pipeline_id = pipelines.id)"
    )
    time.sleep(0.1)


def work_until(conninfo: str, stop: threading.Event, errors: list[Exception]) -> None:
    """Work on every pipeline that there is, as a worker's loop does."""
    try:
        with open_session(conninfo) as session:
            while not stop.is_set():
                for pipeline in load_pipelines(session.side):
                    try:
                        work_once(
                            session,
                            pipeline,
                            chunker=fake_chunker(
                                pipeline.spec.chunk_tokens, pipeline.spec.overlap_tokens
                            ),
                        )
                    except (LeaseLost, PipelineFault):
                        continue
                stop.wait(0.005)
    except Exception as error:  # noqa: BLE001 (told by the test)
        errors.append(error)


def test_search_with_the_old_vector_in_the_new_table_is_refused(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    embed(session, begin(connection, reports))
    switch(connection, reports)
    with pytest.raises(PipelineReplaced, match="search again"):
        search(connection, reports, unit_vector("x"), SearchRequest(limit=3, threshold=-1))


# Workers and crashes


def test_claim_of_the_old_generation_writes_nothing_after_the_switch(
    conninfo: str, connection: Connection, session: Session, reports: Pipeline
) -> None:
    embed(session, begin(connection, reports))

    def queue_and_switch() -> None:
        """Switch while a claim of the old generation, begun after its queue was locked, is made."""
        connection.execute("delete from pgembed.pipelines where id = %s", (reports.id,))
        connection.execute("drop table reports_chunks")
        connection.execute("alter table reports_chunks_next rename to reports_chunks")
        connection.execute(
            "update pgembed.pipelines set name = 'reports', target_table = 'reports_chunks'"
        )

    set_text(connection, reports.source, 1, "Changed, and claimed by the old generation.")
    enqueue(connection, reports, Selection())
    with pytest.raises(LeaseLost, match="replaced or dropped"):
        work_once(session, reports, FakeDevice(during=queue_and_switch))
    # Its item is there still; any worker's housekeeping gives it to the new generation.
    clean_up(connection)
    switched = load_pipeline(connection, "reports")
    embed(session, switched)
    finish(connection, switched)
    assert_converged(connection, "reports")


def test_worker_that_does_not_know_of_the_switch_yet_pauses_nothing(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    successor = begin(connection, reports)
    embed(session, successor)
    switch(connection, reports)
    # The table that it thinks is its own is made again, for the generation after.
    begin(connection, load_pipeline(connection, "reports"), Changes(chunk_tokens=12))
    set_text(connection, reports.source, 1, "Changed after the switch.")
    enqueue(connection, load_pipeline(connection, "reports"), Selection())
    with pytest.raises(LeaseLost, match="replaced or dropped"):
        work_once(session, successor, chunker=fake_chunker(8, 0))
    assert not is_current(connection, successor)
    assert is_current(connection, load_pipeline(connection, "reports"))


def test_claim_in_hand_of_the_old_generation_is_waited_for(
    conninfo: str, connection: Connection, session: Session, reports: Pipeline
) -> None:
    embed(session, begin(connection, reports))
    set_text(connection, reports.source, 1, "Changed before the switch.")
    enqueue(connection, reports, Selection())
    device = FakeDevice(hold=threading.Event())
    claim = threading.Thread(target=work_once, args=(session, reports, device))
    claim.start()
    assert device.entered.wait(20)
    with connect(conninfo) as own:
        pid = own.info.backend_pid
        outcome: list[Exception] = []

        def run() -> None:
            try:
                switch(own, reports)
            except NotComplete as error:
                outcome.append(error)

        switcher = threading.Thread(target=run)
        set_text(connection, reports.source, 1, texts(1)[0])  # as the new generation has it
        switcher.start()
        wait_until_blocked(connection, pid)
        allow(device)
        claim.join(20)
        switcher.join(20)
    assert outcome == []
    switched = load_pipeline(connection, "reports")
    embed(session, switched)
    assert_converged(connection, "reports")


@pytest.mark.on_both_servers
@pytest.mark.parametrize(
    ("place", "step"),
    [(switching, "_lock"), (TableReplacement, "exchange"), (switching, "_exchange_rows")],
    ids=["lock", "exchange", "rows"],
)
def test_crash_in_the_middle_of_a_switch_changes_nothing(
    conninfo: str,
    connection: Connection,
    session: Session,
    reports: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    place: object,
    step: str,
) -> None:
    embed(session, begin(connection, reports))
    old = signature(connection)
    usual = getattr(place, step)

    def crash(*arguments: object) -> None:
        usual(*arguments)
        (own,) = (each for each in arguments if isinstance(each, Connection))
        terminate(connection, own.info.backend_pid)

    monkeypatch.setattr(place, step, crash)
    with connect(conninfo) as own, pytest.raises(psycopg.OperationalError):
        switch(own, reports)
    assert signature(connection) == old
    assert len(load_pipelines(connection)) == 2
    monkeypatch.setattr(place, step, usual)
    switch(connection, reports)
    assert signature(connection) != old
    assert_converged(connection, "reports")


def test_crash_after_the_commit_is_cleaned_up_later(
    connection: Connection,
    session: Session,
    reports: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embed(session, begin(connection, reports))

    def crash(*_: object) -> None:
        raise RuntimeError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(switching, "finish", crash)
        with pytest.raises(RuntimeError, match="cut off"):
            switch(connection, reports)
    switched = load_pipeline(connection, "reports")
    assert_converged(connection, "reports")
    begin(connection, switched, Changes(chunk_tokens=12))
    abort(connection, switched)
    leftovers = one_value(
        connection, "select count(*) from pgembed.records where pipeline_id = %s", (reports.id,)
    )
    assert leftovers == 0


def test_switch_happens_once(
    conninfo: str, connection: Connection, session: Session, reports: Pipeline
) -> None:
    embed(session, begin(connection, reports))
    outcomes: list[str] = []
    barrier = threading.Barrier(4)

    def run() -> None:
        with connect(conninfo) as own:
            barrier.wait(20)
            try:
                outcomes.append(switch(own, reports).name)
            except UsageError as error:
                outcomes.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert outcomes.count("reports") == 1, outcomes
    assert len(outcomes) == 4
    assert_converged(connection, "reports")


def test_generation_that_was_given_up_elsewhere_is_not_taken_for_complete(
    connection: Connection, reports: Pipeline
) -> None:
    successor = begin(connection, reports)
    abort(connection, reports)
    with pytest.raises(NotFound, match="has just been switched to, or given up"):
        pending_records(connection, successor)
