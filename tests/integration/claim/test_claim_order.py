"""The order in which items are claimed, and what is logged of attempts."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import LeaseLost
from pgqueue_embed.queue import claims
from pgqueue_embed.queue.claim_cursor import ClaimCursor
from pgqueue_embed.queue.claims import (
    claim_items,
    claimable_pipelines,
    delete_attempts,
    finish_items,
    is_drained,
    log_attempts,
)
from pgqueue_embed.queue.housekeeping import clean_up
from pgqueue_embed.queue.lease import claim_transaction, renew
from pgqueue_embed.queue.work_items import Handling, add_items
from tests.support.conditions import terminate
from tests.support.queued import EMPTY_PIPELINE, PIPELINE, claim, count, fill, in_flight
from tests.support.rows import one_value

PREPARED = {"connection": EMPTY_PIPELINE}


def test_delayed_item_is_not_claimed_before_its_time(connection: Connection) -> None:
    fill(connection, 1, delay_seconds=3600)
    with claim_transaction(connection, lease_seconds=30):
        assert claim(connection) == []
    assert claimable_pipelines(connection, [PIPELINE], alone=False) == []
    assert not is_drained(connection, [PIPELINE])
    connection.execute("update pgembed.work set available_at = clock_timestamp()")
    with claim_transaction(connection, lease_seconds=30):
        assert claim(connection) != []


@pytest.mark.on_both_servers
def test_item_that_became_due_after_begin_is_claimed(connection: Connection) -> None:
    """now() would be the time of BEGIN."""
    with claim_transaction(connection, lease_seconds=30):
        connection.execute("select pg_sleep(0.05)")
        fill(connection, 1, delay_seconds=0.02)
        connection.execute("select pg_sleep(0.03)")
        assert claim(connection) != []


def test_changes_come_before_bulk_loading(connection: Connection) -> None:
    add_items(connection, PIPELINE, ["bulk"])
    add_items(connection, PIPELINE, ["change"], Handling(priority=0))
    with claim_transaction(connection, lease_seconds=30):
        for key in ("change", "bulk"):
            claimed = claim_items(connection, PIPELINE, limit=2)
            assert claimed is not None
            assert [item.keys for item in claimed.items] == [(key,)]
            finish_items(connection, claimed)


def test_items_set_apart_are_claimed_apart(connection: Connection) -> None:
    add_items(connection, PIPELINE, ["ordinary"])
    add_items(connection, PIPELINE, ["suspect"], Handling(alone=True, deaths=2))
    with claim_transaction(connection, lease_seconds=30):
        ordinary = claim_items(connection, PIPELINE, limit=9)
        suspect = claim_items(connection, PIPELINE, limit=9, alone=True)
    assert ordinary is not None
    assert suspect is not None
    assert [item.keys for item in ordinary.items] == [("ordinary",)]
    assert [(item.keys, item.handling.deaths) for item in suspect.items] == [(("suspect",), 2)]


def test_items_of_other_pipelines_are_not_claimed(connection: Connection) -> None:
    add_items(connection, PIPELINE + 1, ["theirs"])
    with claim_transaction(connection, lease_seconds=30):
        assert claim(connection, 9) == []


@pytest.mark.on_both_servers
def test_keys_are_divided_into_items_of_256(connection: Connection) -> None:
    add_items(connection, PIPELINE, [str(number) for number in range(600)])
    sizes = connection.execute("select records from pgembed.work order by id").fetchall()
    assert sizes == [(256,), (256,), (88,)]


def node_types(plan: dict[str, Any]) -> list[str]:
    below = [kind for part in plan.get("Plans", []) for kind in node_types(part)]
    return [plan["Node Type"], *below]


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.on_both_servers(every_case=True)
def test_claim_walks_the_index_and_locks_no_more_than_it_takes(
    connection: Connection, conninfo: str, analyzed: bool
) -> None:
    connection.execute(
        "insert into pgembed.work (pipeline_id, keys, records)"
        " select 1 + n % 3, array[n::text], 1 from generate_series(1, 6000) as n"
    )
    if analyzed:
        connection.execute("vacuum analyze pgembed.work")
    place = {"priority": 1, "after_id": 0, "held_ids": []}
    values = {"pipeline_id": PIPELINE, "claim_lock": 1, "alone": False, "limit": 5, **place}
    with connect(conninfo) as planner, planner.transaction():
        explain = f"explain (analyze, format json) {claims.CLAIM}"
        plan = one_value(planner, explain, values)
        # A lock of a row is in its xmax, and in no view; another worker skips those locked.
        with connection.transaction():
            skipping = "select count(*) from (select from pgembed.work for update skip locked) w"
            free = one_value(connection, skipping)
    assert "work_claim_order" in json.dumps(plan)
    if analyzed:
        assert "Sort" not in node_types(plan[0]["Plan"]["Plans"][0])
    assert free == 6000 - 5


@pytest.mark.on_both_servers(every_case=True)
def test_what_was_delayed_comes_when_it_is_due_behind_what_was_not(
    connection: Connection,
) -> None:
    fill(connection, 2, delay_seconds=60.0)
    fill(connection, 2)
    late, early, *others = [
        work_id for (work_id,) in connection.execute("select id from pgembed.work order by id")
    ]
    due = "update pgembed.work set available_at = clock_timestamp() - make_interval(secs => %s)"
    cursor = ClaimCursor()

    def claim_one() -> list[int]:
        claimed = claim_items(connection, PIPELINE, limit=1, cursor=cursor)
        if claimed is None:
            return []
        finish_items(connection, claimed)
        return claimed.work_ids

    with claim_transaction(connection, lease_seconds=30):
        # Behind created_at still, if only just: else it would count as one that was not delayed.
        connection.execute(f"{due}, created_at = '2000-01-01' where id = %s", (1, late))
        connection.execute(f"{due}, created_at = '2000-01-01' where id = %s", (2, early))
        assert [claim_one() for _ in range(5)] == [
            *[[each] for each in others],
            [early],
            [late],
            [],
        ]
    fill(connection, 1)
    with claim_transaction(connection, lease_seconds=30):
        assert claim_one() != []


def test_attempts_are_in_flight_while_the_claim_is_open(
    connection: Connection, conninfo: str, rival: Connection
) -> None:
    fill(connection, 2)
    with claim_transaction(rival, lease_seconds=30):
        claimed = claim_items(rival, PIPELINE, limit=2)
        assert claimed is not None
        log_attempts(connection, claimed, worker_id=7)
        assert in_flight(connection) == 2
        finish_items(rival, claimed)
        assert in_flight(connection) == 2
    assert in_flight(connection) == 0
    assert count(connection, "attempts") == 0


@pytest.mark.on_both_servers
def test_attempt_of_a_killed_worker_stays_and_is_not_in_flight(
    connection: Connection, rival: Connection
) -> None:
    fill(connection, 1)

    def be_killed() -> None:
        with claim_transaction(rival, lease_seconds=30):
            claimed = claim_items(rival, PIPELINE, limit=1)
            log_attempts(connection, claimed, worker_id=7)  # type: ignore[arg-type]
            terminate(connection, rival.info.backend_pid)
            renew(rival)

    with pytest.raises(LeaseLost):
        be_killed()
    assert count(connection, "attempts") == 1
    assert in_flight(connection) == 0
    with claim_transaction(connection, lease_seconds=30):
        again = claim_items(connection, PIPELINE, limit=1)
        assert again is not None
        assert again.items[0].handling.deaths == 0
        finish_items(connection, again)
    assert count(connection, "attempts") == 0


def test_claim_that_has_ended_logs_no_attempt(connection: Connection, rival: Connection) -> None:
    fill(connection, 1)

    def log_after_the_end() -> None:
        with claim_transaction(rival, lease_seconds=30):
            claimed = claim_items(rival, PIPELINE, limit=1)
            terminate(connection, rival.info.backend_pid)
            log_attempts(connection, claimed, worker_id=7)  # type: ignore[arg-type]

    with pytest.raises(LeaseLost, match="before it was logged"):
        log_after_the_end()
    assert count(connection, "attempts") == 0


@pytest.mark.on_both_servers
def test_only_deaths_count_against_an_item(connection: Connection) -> None:
    fill(connection, 1)
    with claim_transaction(connection, lease_seconds=30):
        (work_id,) = claim(connection)
    connection.execute(
        "insert into pgembed.attempts (work_id, worker_id, claim_xid, died_at)"
        " values (%(id)s, 1, '3', now()), (%(id)s, 2, '3', now()), (%(id)s, 3, '3', null)",
        {"id": work_id},
    )
    with claim_transaction(connection, lease_seconds=30):
        claimed = claim_items(connection, PIPELINE, limit=1)
    assert claimed is not None
    assert (claimed.items[0].handling.deaths, claimed.items[0].unmarked_deaths) == (2, 2)


def test_attempts_of_other_claims_are_left_alone(connection: Connection) -> None:
    fill(connection, 2)
    with claim_transaction(connection, lease_seconds=30):
        claimed = claim_items(connection, PIPELINE, limit=1)
        assert claimed is not None
        kept = log_attempts(connection, claimed, worker_id=1)
        deleted = log_attempts(connection, claimed, worker_id=2)
    delete_attempts(connection, deleted)
    rows = connection.execute("select id from pgembed.attempts").fetchall()
    assert rows == [(attempt_id,) for attempt_id in kept]


@pytest.mark.on_both_servers
def test_sweep_deletes_old_orphans_and_nothing_else(
    connection: Connection, rival: Connection
) -> None:
    fill(connection, 4)
    with claim_transaction(rival, lease_seconds=30):
        flying = claim_items(rival, PIPELINE, limit=1)
        assert flying is not None
        log_attempts(connection, flying, worker_id=1)
        waiting = one_value(connection, "select max(id) from pgembed.work")
        connection.execute(
            "insert into pgembed.attempts (work_id, worker_id, claim_xid, died_at) values"
            " (%(waiting)s, 11, '3', now()),"
            " (%(waiting)s, 12, '3', null),"
            " (-1, 13, '3', now()),"
            " (%(waiting)s, 14, '9223372036854775807', null)",
            {"waiting": waiting},
        )
        assert clean_up(connection) == 0
        connection.execute("update pgembed.attempts set started_at = now() - interval '2 hours'")
        assert clean_up(connection) == 3
        rows = connection.execute("select worker_id from pgembed.attempts order by 1").fetchall()
        assert rows == [(1,), (11,)]


def test_paused_pipeline_is_neither_claimable_nor_waited_for(connection: Connection) -> None:
    fill(connection, 1)
    assert claimable_pipelines(connection, [PIPELINE], alone=False) == [PIPELINE]
    assert claimable_pipelines(connection, [PIPELINE], alone=True) == []
    connection.execute("update pgembed.pipelines set state = 'paused'")
    assert claimable_pipelines(connection, [PIPELINE], alone=False) == []
    assert is_drained(connection, [PIPELINE])


def test_error_of_a_statement_is_not_a_lost_lease(connection: Connection) -> None:
    with (
        pytest.raises(psycopg.errors.UndefinedTable),
        claim_transaction(connection, lease_seconds=30),
    ):
        connection.execute("select from no_such_table")
    assert not connection.closed


@pytest.mark.on_both_servers
def test_items_given_back_behind_the_cursor_are_found(
    connection: Connection, rival: Connection
) -> None:
    fill(connection, 6)
    cursor = ClaimCursor(front_seconds=3600.0)
    with claim_transaction(rival, lease_seconds=30):
        held = claim(rival, 2)
        with claim_transaction(connection, lease_seconds=30):
            rest = claim_items(connection, PIPELINE, limit=9, cursor=cursor)
            assert rest is not None
            finish_items(connection, rest)
    with claim_transaction(connection, lease_seconds=30):
        found = claim_items(connection, PIPELINE, limit=9, cursor=cursor)
    assert found is not None
    assert found.work_ids == held
