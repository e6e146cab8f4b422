"""A switch of generations looks into ledger and queue, and moves what waits."""

from __future__ import annotations

import math

import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.lifecycle import switch as switching
from pgqueue_embed.lifecycle.alter import Changes, alter, catch_up
from pgqueue_embed.lifecycle.cleanup import finish
from pgqueue_embed.lifecycle.completeness import NotCovered, check_covered
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.lifecycle.sync import start_capture
from pgqueue_embed.pipeline.catalog import pause_at_fault
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.dead_letters import retry
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.corpus import set_text, texts
from tests.support.fakes import FakeDevice, fake_chunker
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.working import drain, embed_documents, work_once

pytestmark = pytest.mark.usefixtures("fake_next_model")


@pytest.fixture
def old(connection: Connection, session: Session) -> Pipeline:
    """A pipeline of six records, embedded."""
    return embed_documents(connection, session, texts(6))


@pytest.fixture
def new(connection: Connection, session: Session, old: Pipeline) -> Pipeline:
    """Its next generation, complete."""
    successor = alter(connection, old, Changes(chunk_tokens=8, overlap_tokens=0))
    assert successor is not None
    catch_up(connection, old, successor)
    drain(session, successor, chunker=fake_chunker(8, 0))
    return successor


@pytest.mark.parametrize(
    "undo",
    [
        "delete from pgembed.records where pipeline_id = %s and key = '3'",
        # As a claim leaves it that has put a record back which changed before its first verdict.
        "update pgembed.records set state = null, document_hash = null, chunks = 0,"
        " embedded_at = null where pipeline_id = %s and key = '3'",
    ],
    ids=["unknown", "without a verdict"],
)
def test_record_that_only_the_old_generation_has_settled_is_not_covered(
    connection: Connection, old: Pipeline, new: Pipeline, undo: str
) -> None:
    check_covered(connection, old, new)
    connection.execute(undo, (new.id,))
    with pytest.raises(NotCovered, match="lacks 1 records that reports has"):
        check_covered(connection, old, new)
    connection.execute("delete from reports where id = 3")
    check_covered(connection, old, new)


# Keys that the ledger holds by their beginning and a hash.
LONG_KEYS = {
    "text": ("id text primary key, number int default 0", ("id",)),
    "composite": ("id text, number int, primary key (number, id)", ("number", "id")),
}


@pytest.mark.parametrize(("columns", "id_fields"), LONG_KEYS.values(), ids=LONG_KEYS)
def test_records_of_long_keys_are_looked_for_and_counted_as_others_are(
    connection: Connection, session: Session, columns: str, id_fields: tuple[str, ...]
) -> None:
    connection.execute(f"create table reports ({columns}, body text)")
    connection.execute(
        "insert into reports"
        " select repeat(md5(i::text), 20), i, 'Report ' || i from generate_series(1, 6) as i"
    )
    source = Table(schema="public", name="reports")
    old = make_pipeline(connection, source, id_fields=id_fields)
    enqueue(connection, old, Selection())
    drain(session, old)
    new = alter(connection, old, Changes(chunk_tokens=8, overlap_tokens=0))
    assert new is not None
    catch_up(connection, old, new)
    drain(session, new, chunker=fake_chunker(8, 0))
    enqueue(connection, old, Selection(everything=True))
    drain(session, old)
    totals = "select distinct total from pgembed.progress"
    assert connection.execute(totals).fetchall() == [(6,)]
    connection.execute(
        "delete from pgembed.records where pipeline_id = %s and long_key like %s",
        (new.id, f"%{'c4ca4238a0b923820dcc509a6f75849b' * 20}%"),
    )
    with pytest.raises(NotCovered, match="lacks 1 records that reports has"):
        check_covered(connection, old, new)
    connection.execute("delete from reports where id = repeat(md5('1'), 20)")
    check_covered(connection, old, new)


def test_records_that_fail_while_a_switch_waits_are_not_switched_to_unasked(
    connection: Connection, session: Session, old: Pipeline, new: Pipeline
) -> None:
    enqueue(connection, new, Selection(everything=True))
    broken = FakeDevice(broken=True)
    before = connection.execute("select * from reports_chunks order by id").fetchall()

    def fail(step: str) -> None:
        if "to embed yet" in step:
            drain(session, new, broken, chunker=fake_chunker(8, 0))

    with pytest.raises(UsageError, match=r"6 records failed in reports \(next\) that reports has"):
        switch(connection, old, patience_seconds=60, on_step=fail)
    assert connection.execute("select * from reports_chunks order by id").fetchall() == before
    switch(connection, old, force=True)
    assert connection.execute("select count(*) from reports_chunks").fetchone() == (0,)


def test_next_generation_that_is_paused_is_not_waited_for(
    connection: Connection, session: Session, old: Pipeline, new: Pipeline
) -> None:
    enqueue(connection, new, Selection(everything=True))

    def pause(step: str) -> None:
        if "to embed yet" in step:
            pause_at_fault(session.side, new, "its model is away")

    go_on = r"6 records to embed yet, and is paused: its model is away.* resume 'reports \(next\)'"
    with pytest.raises(UsageError, match=go_on):
        switch(connection, old, patience_seconds=math.inf, on_step=pause)
    drain(session, new, chunker=fake_chunker(8, 0))
    switch(connection, old)


def test_record_that_failed_and_is_to_be_tried_again_is_waited_for(
    connection: Connection, session: Session, old: Pipeline, new: Pipeline
) -> None:
    enqueue(connection, new, Selection(everything=True, limit=2))
    drain(session, new, FakeDevice(broken=True), chunker=fake_chunker(8, 0))
    for key in (1, 2):
        set_text(connection, old.source, key, f"Mended {key}.")

    def go_on(step: str) -> None:
        if "to embed yet" in step or step == "switching":
            drain(session, new, chunker=fake_chunker(8, 0))

    switched = switch(connection, old, patience_seconds=60, on_step=go_on)
    drain(session, switched, chunker=fake_chunker(8, 0))
    assert_converged(connection, "reports")


def test_records_that_both_generations_failed_at_are_no_reason_to_refuse(
    connection: Connection,
    session: Session,
    old: Pipeline,
    new: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor if somebody has put those of the old one back; the new one has these in its queue."""
    enqueue(connection, old, Selection(everything=True, limit=2))
    for each, chunker in ((old, None), (new, fake_chunker(8, 0))):
        drain(session, each, FakeDevice(broken=True), chunker=chunker)
    assert retry(connection, old) == 2
    with monkeypatch.context() as patch:
        patch.setattr(switching, "finish", lambda *_: None)  # as if it had been killed
        switched = switch(connection, old)
    drain(session, switched, chunker=fake_chunker(8, 0))
    states = "select state from pgembed.records where pipeline_id = %s"
    assert connection.execute(states, (new.id,)).fetchall() == [("embedded",)] * 6
    assert_converged(connection, "reports")


def test_old_generation_claims_nothing_while_a_switch_waits_for_the_next_one(
    connection: Connection, session: Session, old: Pipeline, new: Pipeline
) -> None:
    """Else it would hand on more, for as long as somebody writes."""
    start_capture(connection, old)
    start_capture(connection, new)
    enqueue(connection, new, Selection(everything=True, limit=1))
    claims = []

    def write(step: str) -> None:
        if "to embed yet" in step:
            for number in range(3):
                set_text(session.side, old.source, 2, f"Changed {number}.")
                claims.append(work_once(session, old))
            drain(session, new, chunker=fake_chunker(8, 0))

    switched = switch(connection, old, patience_seconds=60, on_step=write)
    assert claims == [None, None, None]
    drain(session, switched, chunker=fake_chunker(8, 0))
    assert_converged(connection, "reports")


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("column", ["sweep_after", "compare_after"])
def test_sweep_of_the_ledger_begins_again_for_the_new_generation(
    connection: Connection,
    session: Session,
    old: Pipeline,
    new: Pipeline,
    column: str,
    held: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody may have held the item in the moment of the switch."""
    connection.execute(
        f"insert into pgembed.work (pipeline_id, keys, records, priority, known, {column})"
        " values (%s, '{}', 0, 0, true, '4')",
        (old.id,),
    )
    waiting = f"select pipeline_id, {column} from pgembed.work where {column} is not null"
    with session.side.transaction():
        if held:
            session.side.execute("select from pgembed.work for update")
            monkeypatch.setattr(switching, "finish", lambda *_: None)
        switched = switch(connection, old)
    if held:
        assert connection.execute(waiting).fetchall() == [(old.id, "4")]
        finish(connection, switched)
    assert connection.execute(waiting).fetchall() == [(new.id, "")]
    drain(session, switched, chunker=fake_chunker(8, 0))
    assert_converged(connection, "reports")
