"""The claim: a row lock that lives as long as the connection that makes progress."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import LeaseLost
from pgqueue_embed.queue import claims
from pgqueue_embed.queue.claim_cursor import ClaimCursor
from pgqueue_embed.queue.claims import (
    claim_items,
    claim_transaction,
    claimable_pipelines,
    delete_attempts,
    finish_items,
    is_drained,
    log_attempts,
    renew,
)
from pgqueue_embed.queue.housekeeping import clean_up
from pgqueue_embed.queue.work_items import Handling, add_items
from tests.support.conditions import terminate, wait_until, wait_until_gone
from tests.support.corpus import make_source
from tests.support.pipelines import make_pipeline
from tests.support.prepared import filled_by
from tests.support.rows import one_value

PIPELINE = 1


def make_empty_pipeline(connection: Connection, _session: Session) -> None:
    make_source(connection)
    assert make_pipeline(connection).id == PIPELINE


PREPARED = {"connection": filled_by(make_empty_pipeline)}


@pytest.fixture
def other(conninfo: str) -> Iterator[Connection]:
    """The connection of a second worker."""
    with connect(conninfo) as session:
        yield session


def fill(
    connection: Connection, items: int, *, delay_seconds: float = 0.0, **fields: object
) -> None:
    handling = Handling(**fields)  # type: ignore[arg-type]
    for number in range(items):
        add_items(connection, PIPELINE, [str(number)], handling, delay_seconds=delay_seconds)


def claim(connection: Connection, limit: int = 1, *, alone: bool = False) -> list[int]:
    claimed = claim_items(connection, PIPELINE, limit=limit, alone=alone)
    return claimed.work_ids if claimed else []


def count(connection: Connection, table: str) -> int:
    return one_value(connection, f"select count(*) from pgembed.{table}")


def in_flight(connection: Connection) -> int:
    return count(connection, "in_flight")


@pytest.mark.on_both_servers
def test_two_workers_never_share_an_item(connection: Connection, other: Connection) -> None:
    fill(connection, 10)
    with (
        claim_transaction(connection, lease_seconds=30),
        claim_transaction(other, lease_seconds=30),
    ):
        first, second = claim(connection, 4), claim(other, 20)
    assert (len(first), len(second)) == (4, 6)
    assert not set(first) & set(second)


@pytest.mark.on_both_servers
def test_racing_workers_claim_every_item_exactly_once(
    connection: Connection, conninfo: str
) -> None:
    fill(connection, 120)
    start = threading.Barrier(4)

    def worker(_: int) -> list[int]:
        done: list[int] = []
        with connect(conninfo) as session:
            start.wait(10)
            while True:
                with claim_transaction(session, lease_seconds=30):
                    claimed = claim_items(session, PIPELINE, limit=3)
                    if claimed is None:
                        return done
                    finish_items(session, claimed)
                    done += claimed.work_ids

    with ThreadPoolExecutor(4) as pool:
        shares = list(pool.map(worker, range(4)))
    taken = [work_id for share in shares for work_id in share]
    assert len(taken) == len(set(taken)) == 120
    assert is_drained(connection, [PIPELINE])


def test_empty_claim_does_not_mean_drained(connection: Connection, other: Connection) -> None:
    fill(connection, 1)
    with claim_transaction(connection, lease_seconds=30):
        assert claim(connection) != []
        with claim_transaction(other, lease_seconds=30):
            assert claim(other) == []
        assert not is_drained(other, [PIPELINE])
    assert is_drained(other, [PIPELINE + 1])


@pytest.mark.on_both_servers
def test_killed_backend_frees_its_items(connection: Connection, other: Connection) -> None:
    fill(connection, 3)

    def be_killed() -> None:
        with claim_transaction(other, lease_seconds=30):
            assert len(claim(other, 3)) == 3
            terminate(connection, other.info.backend_pid)
            with claim_transaction(connection, lease_seconds=30):
                assert len(claim(connection, 3)) == 3
            renew(other)

    with pytest.raises(LeaseLost, match="took the claim back: terminating connection"):
        be_killed()


def test_client_that_vanishes_frees_its_items(connection: Connection, conninfo: str) -> None:
    fill(connection, 1)
    vanishing = connect(conninfo)
    vanishing.execute("begin")
    assert claim(vanishing) != []
    pid = vanishing.info.backend_pid
    vanishing.close()
    wait_until_gone(connection, pid)
    with claim_transaction(connection, lease_seconds=30):
        assert claim(connection) != []


@pytest.mark.on_both_servers
def test_silent_worker_loses_its_lease(connection: Connection, other: Connection) -> None:
    fill(connection, 1)

    def be_silent() -> None:
        with claim_transaction(other, lease_seconds=1):
            assert claim(other) != []
            wait_until_gone(connection, other.info.backend_pid)
            with claim_transaction(connection, lease_seconds=30):
                assert claim(connection) != []
            renew(other)

    with pytest.raises(LeaseLost, match=r"took the claim back: .*idle-in-transaction"):
        be_silent()
    assert other.closed


@pytest.mark.on_both_servers
def test_lost_lease_is_noticed_at_the_write_too(connection: Connection, other: Connection) -> None:
    fill(connection, 1)

    def write_late() -> None:
        with claim_transaction(other, lease_seconds=1):
            claim(other)
            wait_until_gone(connection, other.info.backend_pid)
            other.execute("insert into pgembed.records (pipeline_id, key) values (1, 'late')")

    with pytest.raises(LeaseLost, match="connection was lost"):
        write_late()
    assert count(connection, "records") == 0


@pytest.mark.on_both_servers
def test_lost_lease_is_noticed_at_the_commit_too(connection: Connection, other: Connection) -> None:
    fill(connection, 1)

    def commit_late() -> None:
        with claim_transaction(other, lease_seconds=1):
            finish_items(other, claim_items(other, PIPELINE, limit=1))  # type: ignore[arg-type]
            wait_until_gone(connection, other.info.backend_pid)

    with pytest.raises(LeaseLost, match="connection was lost"):
        commit_late()
    assert count(connection, "work") == 1


def test_connection_that_is_lost_while_items_are_given_back_is_a_lost_lease(
    connection: Connection, other: Connection
) -> None:
    def give_back_late() -> None:
        with claim_transaction(other, lease_seconds=30), other.transaction() as attempt:
            terminate(connection, other.info.backend_pid)
            raise psycopg.Rollback(attempt)

    with pytest.raises(LeaseLost, match="connection was lost"):
        give_back_late()


@pytest.mark.on_both_servers
def test_progress_keeps_the_lease(connection: Connection, other: Connection) -> None:
    fill(connection, 1)
    server_now = "select clock_timestamp()"
    started = one_value(connection, server_now)
    with claim_transaction(other, lease_seconds=1):
        assert claim(other) != []

        def long_after_the_lease() -> bool:
            renew(other)
            now = one_value(connection, server_now)
            return (now - started).total_seconds() > 1.6

        wait_until(long_after_the_lease, "the lease has been renewed for 1.6 seconds")
        assert not is_drained(connection, [PIPELINE])


@pytest.mark.on_both_servers
def test_lease_lasts_for_its_transaction_only(connection: Connection) -> None:
    with claim_transaction(connection, lease_seconds=1):
        setting = connection.execute("show idle_in_transaction_session_timeout").fetchone()
        assert setting == ("1s",)
    setting = connection.execute("show idle_in_transaction_session_timeout").fetchone()
    assert setting == ("0",)
    assert connection.execute("show statement_timeout").fetchone() == ("0",)


@pytest.mark.on_both_servers
def test_claim_reads_committed_whatever_the_default_is(
    connection: Connection, other: Connection
) -> None:
    connection.execute("set default_transaction_isolation = 'serializable'")
    with claim_transaction(connection, lease_seconds=30):
        assert connection.execute("show transaction_isolation").fetchone() == ("read committed",)
        before = count(connection, "records")
        other.execute("insert into pgembed.records (pipeline_id, key) values (1, 'new')")
        assert count(connection, "records") == before + 1


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
        explain = sql.SQL("explain (analyze, format json) ") + claims.CLAIM
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
    connection: Connection, conninfo: str, other: Connection
) -> None:
    fill(connection, 2)
    with claim_transaction(other, lease_seconds=30):
        claimed = claim_items(other, PIPELINE, limit=2)
        assert claimed is not None
        log_attempts(connection, claimed, worker_id=7)
        assert in_flight(connection) == 2
        finish_items(other, claimed)
        assert in_flight(connection) == 2
    assert in_flight(connection) == 0
    assert count(connection, "attempts") == 0


@pytest.mark.on_both_servers
def test_attempt_of_a_killed_worker_stays_and_is_not_in_flight(
    connection: Connection, other: Connection
) -> None:
    fill(connection, 1)

    def be_killed() -> None:
        with claim_transaction(other, lease_seconds=30):
            claimed = claim_items(other, PIPELINE, limit=1)
            log_attempts(connection, claimed, worker_id=7)  # type: ignore[arg-type]
            terminate(connection, other.info.backend_pid)
            renew(other)

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


def test_claim_that_has_ended_logs_no_attempt(connection: Connection, other: Connection) -> None:
    fill(connection, 1)

    def log_after_the_end() -> None:
        with claim_transaction(other, lease_seconds=30):
            claimed = claim_items(other, PIPELINE, limit=1)
            terminate(connection, other.info.backend_pid)
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
    connection: Connection, other: Connection
) -> None:
    fill(connection, 4)
    with claim_transaction(other, lease_seconds=30):
        flying = claim_items(other, PIPELINE, limit=1)
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
    connection: Connection, other: Connection
) -> None:
    fill(connection, 6)
    cursor = ClaimCursor(look_back_seconds=3600.0)
    with claim_transaction(other, lease_seconds=30):
        held = claim(other, 2)
        with claim_transaction(connection, lease_seconds=30):
            rest = claim_items(connection, PIPELINE, limit=9, cursor=cursor)
            assert rest is not None
            finish_items(connection, rest)
    with claim_transaction(connection, lease_seconds=30):
        found = claim_items(connection, PIPELINE, limit=9, cursor=cursor)
    assert found is not None
    assert found.work_ids == held
