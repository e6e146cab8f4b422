"""A row that is not there is no evidence of its deletion: when vectors go, and when they stay."""

from __future__ import annotations

from typing import Any

import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.claim.size import ClaimSize
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import PipelineFault, UsageError
from pgqueue_embed.lifecycle.alter import catch_up
from pgqueue_embed.pipeline.catalog import load_pipeline, pause_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue import deleted
from pgqueue_embed.queue.capture import install
from pgqueue_embed.queue.claims import claim_items, log_attempts
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.queue.lease import claim_transaction
from tests.support.corpus import delete_records, texts
from tests.support.fakes import FakeDevice
from tests.support.oracle import assert_converged
from tests.support.prepared import filled_by
from tests.support.working import drain, embed_documents, open_session, work_once

RECORDS = 40
UNASKED = 10


@pytest.fixture(autouse=True)
def _ask_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deleted, "UNASKED_RECORDS", UNASKED)


def make(connection: Connection, session: Session, **fields: Any) -> Pipeline:
    """Return a pipeline over ``public.reports`` with all its records embedded."""
    return embed_documents(connection, session, texts(RECORDS), **fields)


PREPARED = {"pipeline": filled_by(make)}


@pytest.fixture
def pipeline(connection: Connection) -> Pipeline:
    return load_pipeline(connection, "reports")


def exchange_for_an_empty_table(connection: Connection) -> None:
    connection.execute("create table emptied (like reports including all)")
    connection.execute("alter table reports rename to before")
    connection.execute("alter table emptied rename to reports")


def bring_back(connection: Connection) -> None:
    connection.execute("drop table reports; alter table before rename to reports")


def states(connection: Connection) -> tuple[int, int, int]:
    """Return how many records are embedded, how many items wait, and how many have vectors."""
    return connection.execute(
        """
        select
            (select count(*) from pgembed.records where state = 'embedded'),
            (select count(*) from pgembed.work),
            (select count(distinct fulltext_id) from reports_chunks)
        """
    ).fetchone() or (0, 0, 0)


def state_of(connection: Connection) -> tuple[str, str | None]:
    query = "select state, state_reason from pgembed.progress"
    return connection.execute(query).fetchone() or ("", None)


def test_a_look_that_misses_too_much_pauses_and_asks(
    conninfo: str, connection: Connection, pipeline: Pipeline
) -> None:
    exchange_for_an_empty_table(connection)
    with pytest.raises(PipelineFault, match=r"40 of 40 records are gone from public\.reports"):
        enqueue(connection, pipeline, Selection(), slice_records=7)
    assert states(connection) == (RECORDS, 0, RECORDS)
    state, reason = state_of(connection)
    assert state == "paused"
    assert "pgembed enqueue reports --allow-deletes" in (reason or "")
    bring_back(connection)
    connection.execute("select pgembed.resume('reports')")
    assert enqueue(connection, pipeline, Selection()) == 0
    assert_converged(connection, "reports")


def test_a_person_who_allows_it_has_the_vectors_deleted_and_work_goes_on(
    conninfo: str, connection: Connection, pipeline: Pipeline
) -> None:
    delete_records(connection, pipeline.source, list(range(1, 21)))
    with pytest.raises(PipelineFault, match="20 of 40"):
        enqueue(connection, pipeline, Selection())
    paused = load_pipeline(connection, "reports")
    assert enqueue(connection, paused, Selection(), allow_deletes=True, slice_records=7) == 20
    assert state_of(connection) == ("active", None)
    with open_session(conninfo) as session:
        drain(session, pipeline)
    assert_converged(connection, "reports")
    assert states(connection) == (20, 0, 20)


def test_what_a_person_has_paused_stays_so(connection: Connection, pipeline: Pipeline) -> None:
    pause_pipeline(connection, pipeline, "for the night")
    exchange_for_an_empty_table(connection)
    paused = load_pipeline(connection, "reports")
    with pytest.raises(PipelineFault, match="--allow-deletes"):
        enqueue(connection, paused, Selection())
    assert state_of(connection) == ("paused", "for the night")
    enqueue(connection, paused, Selection(), allow_deletes=True)
    assert state_of(connection) == ("paused", "for the night")


@pytest.mark.parametrize("number", [UNASKED, UNASKED + 1])
def test_as_much_as_may_go_unasked_goes(
    connection: Connection, pipeline: Pipeline, number: int
) -> None:
    delete_records(connection, pipeline.source, list(range(1, number + 1)))
    if number <= UNASKED:
        assert enqueue(connection, pipeline, Selection()) == number
    else:
        with pytest.raises(PipelineFault):
            enqueue(connection, pipeline, Selection())


def test_a_part_of_the_source_cannot_be_allowed(connection: Connection, pipeline: Pipeline) -> None:
    with pytest.raises(UsageError, match="--allow-deletes"):
        enqueue(connection, pipeline, Selection(limit=3), allow_deletes=True)


@pytest.mark.on_both_servers
def test_what_triggers_have_told_is_believed(
    conninfo: str, connection: Connection, pipeline: Pipeline
) -> None:
    install(connection, pipeline)
    delete_records(connection, pipeline.source, list(range(1, 31)))
    assert enqueue(connection, pipeline, Selection()) == 0, "it waits already"
    with open_session(conninfo) as session:
        with claim_transaction(session.connection, lease_seconds=30):
            claim = claim_items(session.connection, pipeline.id, limit=16)
            assert claim is not None
            log_attempts(session.side, claim, 1)
            told_in_flight = enqueue(connection, pipeline, Selection())
        assert told_in_flight == 30, "a claim may have read the record before it was deleted"
        drain(session, pipeline)
    assert_converged(connection, "reports")
    connection.execute("truncate reports")
    enqueue(connection, pipeline, Selection())
    with open_session(conninfo) as session:
        drain(session, pipeline)
    assert states(connection) == (0, 0, 0)


def test_records_found_by_a_scan_keep_their_vectors_when_they_are_not_there(
    conninfo: str, connection: Connection, pipeline: Pipeline
) -> None:
    enqueue(connection, pipeline, Selection(everything=True))
    exchange_for_an_empty_table(connection)
    with open_session(conninfo) as session:
        drain(session, pipeline)
        assert states(connection) == (RECORDS, 0, RECORDS)
        bring_back(connection)
        delete_records(connection, pipeline.source, [1, 2])
        assert enqueue(connection, pipeline, Selection()) == 2
        drain(session, pipeline)
    assert_converged(connection, "reports")


def test_source_that_is_exchanged_while_it_is_embedded_keeps_its_vectors(
    conninfo: str, connection: Connection, pipeline: Pipeline
) -> None:
    connection.execute("update reports set body = body || ' Changed.'")
    enqueue(connection, pipeline, Selection())
    device = FakeDevice(
        dimensions=pipeline.dimensions, during=lambda: exchange_for_an_empty_table(connection)
    )
    with open_session(conninfo) as session:
        work_once(session, pipeline, device)
        assert states(connection)[::2] == (RECORDS, RECORDS)


def test_row_that_the_condition_does_not_let_in_any_more_loses_its_vectors(
    connection: Connection, session: Session
) -> None:
    pipeline = make(connection, session, where="body not like '%withdrawn%'")
    enqueue(connection, pipeline, Selection(everything=True))
    connection.execute("update reports set body = 'withdrawn' where id <= 5")
    drain(session, pipeline)
    assert_converged(connection, "reports")
    assert states(connection) == (RECORDS - 5, 0, RECORDS - 5)


def test_new_record_that_is_deleted_before_it_is_embedded_leaves_nothing(
    conninfo: str, connection: Connection, pipeline: Pipeline
) -> None:
    connection.execute("insert into reports select n, 'New.' from generate_series(101, 120) as n")
    enqueue(connection, pipeline, Selection())
    connection.execute("delete from reports where id > 110")
    with open_session(conninfo) as session:
        drain(session, pipeline)
    assert_converged(connection, "reports")


def test_next_generation_asks_too(connection: Connection, pipeline: Pipeline) -> None:
    exchange_for_an_empty_table(connection)
    with pytest.raises(PipelineFault, match="gone"):
        catch_up(connection, pipeline, pipeline)


def test_sweep_that_no_truncate_has_left_looks_first(
    conninfo: str, connection: Connection, pipeline: Pipeline
) -> None:
    connection.execute(
        "insert into pgembed.work (pipeline_id, keys, records, sweep_after, allow_deletes)"
        " values (%s, '{}', 0, '', false)",
        (pipeline.id,),
    )
    exchange_for_an_empty_table(connection)
    with open_session(conninfo) as session:
        with pytest.raises(PipelineFault, match="--allow-deletes"):
            work_once(session, pipeline)
        assert states(connection)[::2] == (RECORDS, RECORDS)
        enqueue(connection, load_pipeline(connection, "reports"), Selection(), allow_deletes=True)
        drain(session, pipeline)
    assert states(connection) == (0, 0, 0)


@pytest.mark.parametrize("number", [1, RECORDS])
def test_changes_that_triggers_have_told_say_nothing_of_deletion(
    conninfo: str, connection: Connection, pipeline: Pipeline, number: int
) -> None:
    install(connection, pipeline)
    connection.execute("update reports set body = body || ' More.' where id <= %s", (number,))
    exchange_for_an_empty_table(connection)
    with open_session(conninfo) as session:
        drain(session, pipeline)
        assert states(connection) == (RECORDS, 0, RECORDS)
        bring_back(connection)
        connection.execute("update reports set id = id + 1000 where id <= %s", (number,))
        drain(session, pipeline)
    assert_converged(connection, "reports")


def test_what_one_item_tells_is_kept_of_a_record_that_is_put_back_with_another(
    connection: Connection, session: Session, pipeline: Pipeline
) -> None:
    """A claim that was cut to few records after one that took too long, as a slow source makes."""
    install(connection, pipeline)
    for statement in (
        "update reports set body = 'changed' where id = 1",
        "update reports set body = 'changed' where id = 2",
        "delete from reports where id = 2",
    ):
        connection.execute(statement)
    work_once(session, pipeline, size=ClaimSize(items=1, limit_bytes=1 << 20, records=1))
    assert connection.execute("select keys, allow_deletes from pgembed.work").fetchall() == [
        (["2"], True)
    ]
    drain(session, pipeline)
    assert_converged(connection, "reports")
