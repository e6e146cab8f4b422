"""Items of a single record, which changes make: claimed and set apart by the hundred."""

from __future__ import annotations

import pytest

from pgqueue_embed.claim.size import ClaimSize
from pgqueue_embed.claim.suspects import isolate
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.capture import install
from pgqueue_embed.queue.claim_cursor import NEARBY_ITEMS, ClaimCursor
from pgqueue_embed.queue.claims import (
    Claim,
    claim_items,
    claimable_pipelines,
    finish_items,
    log_attempts,
)
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.queue.item_size import MAX_ITEM_RECORDS
from pgqueue_embed.queue.lease import claim_transaction
from pgqueue_embed.queue.work_items import Handling, add_items
from tests.support.corpus import make_source, texts
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.working import drain, open_session, work_once

ITEMS = "select count(*), sum(records) from pgembed.work"


@pytest.fixture
def pipeline(connection: Connection) -> Pipeline:
    """A pipeline over ``public.reports`` without work."""
    make_source(connection, texts(10))
    return make_pipeline(connection)


def queue(
    connection: Connection, pipeline: Pipeline, count: int, *, size: int = 1, priority: int = 0
) -> None:
    connection.execute(
        """
        insert into pgembed.work (pipeline_id, keys, records, priority)
        select %s, array(select (n * 1000 + m)::text from generate_series(1, %s) as m), %s, %s
        from generate_series(1, %s) as n
        """,
        (pipeline.id, size, size, priority, count),
    )


def claimed(connection: Connection, pipeline: Pipeline, limit: int, **how: object) -> list[int]:
    """Return how many keys each item of a claim has, which is given back."""
    with connection.transaction(force_rollback=True):
        claim = claim_items(connection, pipeline.id, limit=limit, **how)  # type: ignore[arg-type]
        return [] if claim is None else [len(item.keys) for item in claim.items]


@pytest.mark.parametrize(
    ("queued", "limit", "taken"),
    [
        ([(700, 1, 0)], 1, 256),
        ([(700, 1, 0)], 2, 512),
        ([(30, 100, 0)], 4, 10),
        ([(30, 8, 1)], 4, 4),
        ([(30, 256, 0)], 4, 4),
        ([(5, 1, 0), (30, 256, 0)], 2, 6),
        ([(2, 1, 0), (30, 256, 0)], 2, 3),
        ([(40, 1, 0), (40, 200, 0), (40, 1, 0)], 16, 60),
    ],
)
def test_a_claim_takes_as_many_records_as_full_items_have(
    connection: Connection,
    pipeline: Pipeline,
    queued: list[tuple[int, int, int]],
    limit: int,
    taken: int,
) -> None:
    for count, size, priority in queued:
        queue(connection, pipeline, count, size=size, priority=priority)
    sizes = claimed(connection, pipeline, limit)
    assert len(sizes) == taken
    if queued[0][2] == 0:
        assert sum(sizes) <= limit * MAX_ITEM_RECORDS


def test_what_does_not_fit_is_free_for_others(
    conninfo: str, connection: Connection, pipeline: Pipeline
) -> None:
    queue(connection, pipeline, 4)
    queue(connection, pipeline, 6, size=256)
    with open_session(conninfo) as session, session.connection.transaction():
        first = claim_items(session.connection, pipeline.id, limit=4)
        assert first is not None
        assert len(first.items) == 7
        assert claimed(connection, pipeline, 16) == [256] * 3


def test_one_suspect_is_claimed_at_a_time(connection: Connection, pipeline: Pipeline) -> None:
    add_items(
        connection,
        pipeline.id,
        [str(n) for n in range(9)],
        Handling(alone=True),
        records_per_item=1,
    )
    connection.execute("update pgembed.work set priority = 0")
    assert claimed(connection, pipeline, 1, alone=True) == [1]


def test_single_changes_are_embedded_in_few_claims(conninfo: str, connection: Connection) -> None:
    make_source(connection, texts(600))
    pipeline = make_pipeline(connection)
    install(connection, pipeline)
    with open_session(conninfo) as session:
        enqueue(connection, pipeline, Selection())
        drain(session, pipeline)
        with connection.transaction():
            for number in range(1, 601):
                connection.execute(
                    "update reports set body = body || ' More.' where id = %s", (number,)
                )
        assert connection.execute(ITEMS).fetchone() == (600, 600)
        done = drain(session, pipeline, size=ClaimSize(items=16, limit_bytes=1 << 24))
    assert len(done) == 1
    assert done[0].rate is not None
    assert done[0].rate.items == 3
    assert_converged(connection, "reports")


def test_what_lies_beyond_the_bytes_of_a_claim_becomes_a_large_item(
    conninfo: str, connection: Connection
) -> None:
    make_source(connection, texts(300))
    pipeline = make_pipeline(connection)
    install(connection, pipeline)
    connection.execute("update reports set body = body || ' More.'")
    for number in range(1, 301):
        connection.execute("update reports set body = body || ' More.' where id = %s", (number,))
    connection.execute("delete from pgembed.work where records > 1")
    with open_session(conninfo) as session:
        work_once(session, pipeline, size=ClaimSize(items=2, limit_bytes=500))
        items, records = connection.execute(ITEMS).fetchone() or (0, 0)
        assert records > 200
        assert items <= 2
        drain(session, pipeline)
    assert_converged(connection, "reports")


def test_suspects_of_a_single_record_are_set_apart_as_few_items(
    conninfo: str, connection: Connection, pipeline: Pipeline
) -> None:
    queue(connection, pipeline, 600)
    with open_session(conninfo) as session:
        with session.connection.transaction(force_rollback=True):
            log_attempts(session.side, _claim(session.connection, pipeline), 1)
        connection.execute("update pgembed.attempts set died_at = now()")
        with session.connection.transaction():
            isolate(session.connection, _claim(session.connection, pipeline))
        rows = "select records, alone, deaths from pgembed.work order by id"
        assert connection.execute(rows).fetchall() == [
            (256, True, 1),
            (256, True, 1),
            (88, True, 1),
        ]
        assert connection.execute("select count(*) from pgembed.attempts").fetchone() == (0,)


def _claim(connection: Connection, pipeline: Pipeline) -> Claim:
    claim = claim_items(connection, pipeline.id, limit=16)
    assert claim is not None
    return claim


def finish(conninfo: str, pipeline: Pipeline, cursor: ClaimCursor) -> None:
    """Claim everything and be done with it."""
    with open_session(conninfo) as session:
        while True:
            with claim_transaction(session.connection, lease_seconds=30):
                claim = claim_items(session.connection, pipeline.id, limit=16, cursor=cursor)
                if claim is None:
                    return
                finish_items(session.connection, claim)


def test_idle_worker_looks_a_little_before_its_place_and_at_all_once_in_a_while(
    conninfo: str, connection: Connection, pipeline: Pipeline
) -> None:
    cursor = ClaimCursor(front_seconds=3600)
    cursors = {pipeline.id: cursor}
    assert claimable_pipelines(connection, [pipeline.id], alone=False, cursors=cursors) == []
    (first,) = connection.execute(
        "select nextval(pg_get_serial_sequence('pgembed.work', 'id'))"
    ).fetchone() or (0,)
    connection.execute(
        "select setval(pg_get_serial_sequence('pgembed.work', 'id'), %s)", (first + NEARBY_ITEMS,)
    )
    queue(connection, pipeline, 1)
    finish(conninfo, pipeline, cursor)

    def found_with(id_: int, cursor: ClaimCursor = cursor) -> bool:
        connection.execute("delete from pgembed.work")
        connection.execute(
            "insert into pgembed.work (id, pipeline_id, keys, records, priority)"
            " overriding system value values (%s, %s, '{1}', 1, 0)",
            (id_, pipeline.id),
        )
        cursors = {pipeline.id: cursor}
        claimable = claimable_pipelines(connection, [pipeline.id], alone=False, cursors=cursors)
        with connection.transaction(force_rollback=True):
            claim = claim_items(connection, pipeline.id, limit=1, cursor=cursor)
        assert bool(claimable) == (claim is not None)
        return claim is not None

    assert found_with(first + NEARBY_ITEMS + 2), "behind the place"
    assert not found_with(first), "too far before the place"
    assert found_with(first + 100), "of a transaction that was committed late"
    back = ClaimCursor(front_seconds=0)
    back.advance(0, [first + 2 * NEARBY_ITEMS])
    assert found_with(first, back), "when it is time for all"
