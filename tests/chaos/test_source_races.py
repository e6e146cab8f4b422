"""The user changes the source while workers embed it: nothing stale, nothing lost, nobody waits."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pgqueue_embed import batch
from pgqueue_embed.claims import Claim, add_items, finish_items
from pgqueue_embed.connect import Connection
from pgqueue_embed.enqueue import Selection, enqueue
from tests.support.corpus import delete_records, make_source, set_text, texts
from tests.support.oracle import assert_converged
from tests.support.pipelines import REPORTS, make_pipeline
from tests.support.working import drain, open_session, work_once


def just_before_commit(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Let `action` happen once, when a claim has re-checked its records but not yet committed."""

    def finish(connection: Connection, claim: Claim) -> None:
        monkeypatch.undo()
        action()
        finish_items(connection, claim)

    monkeypatch.setattr(batch, "finish_items", finish)


@pytest.mark.parametrize("embedded_before", [False, True])
def test_enqueue_finds_a_change_that_a_claim_in_flight_has_not_seen(
    connection: Connection,
    conninfo: str,
    monkeypatch: pytest.MonkeyPatch,
    embedded_before: bool,
) -> None:
    make_source(connection, texts(5))
    pipeline = make_pipeline(connection)
    enqueue(connection, pipeline, Selection())
    queued: list[int] = []

    def change_and_enqueue() -> None:
        set_text(connection, REPORTS, 3, "A newer text.")
        queued.append(enqueue(connection, pipeline, Selection()))

    with open_session(conninfo) as session:
        if embedded_before:
            drain(session, pipeline)
            set_text(connection, REPORTS, 3, "A new text.")
            enqueue(connection, pipeline, Selection())
        just_before_commit(monkeypatch, change_and_enqueue)
        work_once(session, pipeline)
        assert queued != [0]
        total = connection.execute("select total from pgembed.progress").fetchone()
        assert total == (5,)
        drain(session, pipeline)
    assert_converged(connection, "reports")


def test_enqueue_finds_a_text_that_came_back_while_a_claim_writes_another(
    connection: Connection, conninfo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_source(connection, ["First text."])
    pipeline = make_pipeline(connection)
    enqueue(connection, pipeline, Selection())

    def change_back_and_enqueue() -> None:
        set_text(connection, REPORTS, 1, "First text.")
        enqueue(connection, pipeline, Selection())

    with open_session(conninfo) as session:
        drain(session, pipeline)
        set_text(connection, REPORTS, 1, "Second text.")
        enqueue(connection, pipeline, Selection())
        just_before_commit(monkeypatch, change_back_and_enqueue)
        drain(session, pipeline)
    assert_converged(connection, "reports")


def test_enqueue_takes_the_keys_of_a_claim_that_was_rolled_back_for_pending(
    connection: Connection, conninfo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_source(connection, texts(5))
    pipeline = make_pipeline(connection)
    enqueue(connection, pipeline, Selection())

    class Crash(BaseException):
        pass

    def crash(_connection: Connection, _ids: list[int]) -> None:
        raise Crash

    monkeypatch.setattr(batch, "_delete_quietly", crash)
    monkeypatch.setattr(batch, "finish_items", crash)
    with open_session(conninfo) as session:
        with pytest.raises(Crash):
            work_once(session, pipeline)
        monkeypatch.undo()
        assert connection.execute("select count(*) from pgembed.attempts").fetchone() == (1,)
        assert enqueue(connection, pipeline, Selection()) == 0
        drain(session, pipeline)
    assert_converged(connection, "reports")


@pytest.mark.parametrize("embedded_before", [False, True])
def test_enqueue_finds_a_record_that_is_deleted_while_a_claim_writes_it(
    connection: Connection,
    conninfo: str,
    monkeypatch: pytest.MonkeyPatch,
    embedded_before: bool,
) -> None:
    make_source(connection, texts(5))
    pipeline = make_pipeline(connection)
    enqueue(connection, pipeline, Selection())

    def delete_and_enqueue() -> None:
        delete_records(connection, REPORTS, [3])
        enqueue(connection, pipeline, Selection())

    with open_session(conninfo) as session:
        if embedded_before:
            drain(session, pipeline)
            set_text(connection, REPORTS, 3, "A new text.")
            add_items(connection, pipeline.id, ["3"], priority=0, known=True)
        just_before_commit(monkeypatch, delete_and_enqueue)
        drain(session, pipeline)
    assert_converged(connection, "reports")
