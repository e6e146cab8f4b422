"""Enqueue: every record that wants embedding is queued once, in key order, slice by slice."""

from __future__ import annotations

import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.queue.work_items import Handling, add_items
from tests.support.corpus import make_source, set_text, texts
from tests.support.enqueuing import (
    THOUSAND,
    numbers,
    queued_items,
    queued_keys,
)
from tests.support.fakes import FakeDevice
from tests.support.oracle import assert_converged
from tests.support.pipelines import REPORTS, make_pipeline
from tests.support.rows import one_value
from tests.support.working import drain, embed_documents, open_session, work_once

PREPARED = {"pipeline": THOUSAND}


def test_keys_are_queued_in_key_order_in_items_of_limited_size(
    connection: Connection, pipeline: Pipeline
) -> None:
    assert enqueue(connection, pipeline, Selection(), slice_records=300) == 1000
    items = queued_items(connection)
    assert [key for item in items for key in item] == numbers(1, 1000)
    assert all(1 <= len(item) <= 256 for item in items)


def test_items_of_a_large_source_are_full(connection: Connection) -> None:
    make_source(connection, [])
    connection.execute(
        "insert into public.reports select n, 'text' from generate_series(1, 20000) as n"
    )
    enqueue(connection, make_pipeline(connection), Selection())
    sizes = [len(item) for item in queued_items(connection)]
    assert set(sizes[:-1]) == {256}
    assert sum(sizes) == 20_000


def test_enqueue_twice_queues_nothing_twice(connection: Connection, pipeline: Pipeline) -> None:
    assert enqueue(connection, pipeline, Selection()) == 1000
    assert enqueue(connection, pipeline, Selection()) == 0
    assert enqueue(connection, pipeline, Selection(everything=True)) == 0
    assert queued_keys(connection) == numbers(1, 1000)


def test_all_queues_what_waits_and_would_be_found_unchanged(
    connection: Connection, conninfo: str, pipeline: Pipeline
) -> None:
    connection.execute("delete from public.reports where id > 5")
    enqueue(connection, pipeline, Selection())
    with open_session(conninfo) as session:
        drain(session, pipeline)
        add_items(connection, pipeline.id, ["2", "3"], Handling(priority=0, known=True))
        assert enqueue(connection, pipeline, Selection(everything=True)) == 5
        assert enqueue(connection, pipeline, Selection(everything=True)) == 0
        total = connection.execute("select total, pending from pgembed.progress").fetchone()
        assert total == (5, 7)
        device = FakeDevice()
        drain(session, pipeline, device)
    assert sum(text.startswith("Report ") for text in device.embedded_texts) == 5
    assert_converged(connection, "reports")


def test_changes_that_wait_in_any_order_are_not_queued_again(
    connection: Connection, pipeline: Pipeline
) -> None:
    """The first and the last key of their item tell nothing of those between."""
    add_items(connection, pipeline.id, ["500", "1", "1000", "499"], Handling(priority=0))
    assert enqueue(connection, pipeline, Selection(), slice_records=300) == 996


def test_record_of_a_claim_in_flight_is_queued_once_more(
    connection: Connection, session: Session
) -> None:
    """Its text may have changed, and back, since the claim has looked: the ledger knows neither."""
    pipeline = embed_documents(connection, session, texts(3))
    add_items(connection, pipeline.id, ["2"], Handling(known=True, embed_again=True))
    queued: list[int] = []
    device = FakeDevice(during=lambda: queued.append(enqueue(connection, pipeline, Selection())))
    work_once(session, pipeline, device)
    assert queued == [1]
    assert queued_keys(connection) == ["2"]


def test_limit_queues_so_many_and_the_next_run_as_many_more(
    connection: Connection, pipeline: Pipeline
) -> None:
    assert enqueue(connection, pipeline, Selection(limit=30), slice_records=20) == 30
    assert queued_keys(connection) == numbers(1, 30)
    assert enqueue(connection, pipeline, Selection(limit=30), slice_records=20) == 30
    assert queued_keys(connection) == numbers(1, 60)
    assert enqueue(connection, pipeline, Selection()) == 940


def test_limit_beyond_the_source_queues_what_there_is(
    connection: Connection, pipeline: Pipeline
) -> None:
    assert enqueue(connection, pipeline, Selection(limit=5000), slice_records=100) == 1000


def test_limit_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match="--limit 0"):
        Selection(limit=0)


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("id <= 10", 10),
        ("id % 100 = 0", 10),
        ("body like '%Report 1_.%'", 10),
        ("body like 'Report 7.%' or body = 'it''s' or body like '%{braces}%'", None),
        ('source.id between 5 and 6 and "body" is not null', 2),
        ("id in (select id from public.reports where id < 4)", 3),
        ("id < 3 -- a comment", 2),
        ("false", 0),
        ("body = '%s' or body = '%(last_key)s'", 0),
    ],
)
def test_condition_is_the_users_own_sql(
    connection: Connection, pipeline: Pipeline, where: str, count: int | None
) -> None:
    if count is None:
        count = one_value(connection, f"select count(*) from public.reports where {where}")
        assert 0 < count < 1000
    assert enqueue(connection, pipeline, Selection(where=where), slice_records=99) == count
    assert enqueue(connection, pipeline, Selection(where=where), slice_records=99) == 0


@pytest.mark.parametrize(
    "where",
    [
        "nonsense",
        "id = ",
        "body",
        "no_such(id)",
        "true; select 1",
        "id %% 2 = 0",
    ],
)
def test_broken_condition_is_refused_in_the_users_terms(
    connection: Connection, pipeline: Pipeline, where: str
) -> None:
    with pytest.raises(UsageError, match="--where") as refusal:
        enqueue(connection, pipeline, Selection(where=where))
    assert "\n" not in str(refusal.value)
    assert queued_keys(connection) == []


def test_condition_that_fails_on_a_record_is_refused_in_the_users_terms(
    connection: Connection, pipeline: Pipeline
) -> None:
    with pytest.raises(UsageError, match=r"--where .*division by zero"):
        enqueue(connection, pipeline, Selection(where="1 / (id - 500) > 0"))


def test_what_is_embedded_is_queued_again_only_when_it_changes(
    connection: Connection, conninfo: str, pipeline: Pipeline
) -> None:
    enqueue(connection, pipeline, Selection(where="id <= 50"))
    with open_session(conninfo) as session:
        drain(session, pipeline)
        assert enqueue(connection, pipeline, Selection(where="id <= 50")) == 0
        set_text(connection, REPORTS, 7, "another text")
        set_text(connection, REPORTS, 8, None)
        set_text(connection, REPORTS, 0, "new, before all others")
        assert enqueue(connection, pipeline, Selection(where="id <= 50")) == 3
        assert sorted(queued_keys(connection), key=int) == ["0", "7", "8"]
        known = "select keys, known from pgembed.work order by id"
        assert connection.execute(known).fetchall() == [(["0"], False), (["7", "8"], True)]
        enqueue(connection, pipeline, Selection())
        drain(session, pipeline)
    assert_converged(connection, "reports")


def test_everything_is_queued_if_asked(
    connection: Connection, conninfo: str, pipeline: Pipeline
) -> None:
    selection = Selection(where="id <= 20", everything=True)
    enqueue(connection, pipeline, selection)
    with open_session(conninfo) as session:
        drain(session, pipeline)
    assert enqueue(connection, pipeline, selection) == 20
    assert connection.execute("select bool_and(embed_again) from pgembed.work").fetchone() == (
        True,
    )


def test_another_configuration_queues_everything(
    connection: Connection, conninfo: str, pipeline: Pipeline
) -> None:
    enqueue(connection, pipeline, Selection(where="id <= 20"))
    with open_session(conninfo) as session:
        drain(session, pipeline)
    changed = Pipeline(**{**vars(pipeline), "generation": 2})
    assert enqueue(connection, changed, Selection(where="id <= 20")) == 20


def test_dead_letter_is_queued_again_only_when_its_text_changes(
    connection: Connection, conninfo: str
) -> None:
    make_source(connection, ["fine", "POISON"])
    pipeline = make_pipeline(connection, max_attempts=1)
    enqueue(connection, pipeline, Selection())
    with open_session(conninfo) as session:
        drain(session, pipeline)
        assert enqueue(connection, pipeline, Selection()) == 0
        set_text(connection, REPORTS, 2, "cured")
        assert enqueue(connection, pipeline, Selection()) == 1
        drain(session, pipeline)
    assert_converged(connection, "reports")
