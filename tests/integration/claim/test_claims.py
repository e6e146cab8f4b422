"""The claim: a row lock that lives as long as the connection that makes progress."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import LeaseLost
from pgqueue_embed.queue.claims import claim_items, finish_items, is_drained
from pgqueue_embed.queue.lease import claim_transaction, renew
from tests.support.conditions import terminate, wait_until, wait_until_gone
from tests.support.queued import EMPTY_PIPELINE, PIPELINE, claim, count, fill
from tests.support.rows import one_value

PREPARED = {"connection": EMPTY_PIPELINE}


@pytest.mark.on_both_servers
def test_two_workers_never_share_an_item(connection: Connection, rival: Connection) -> None:
    fill(connection, 10)
    with (
        claim_transaction(connection, lease_seconds=30),
        claim_transaction(rival, lease_seconds=30),
    ):
        first, second = claim(connection, 4), claim(rival, 20)
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


def test_empty_claim_does_not_mean_drained(connection: Connection, rival: Connection) -> None:
    fill(connection, 1)
    with claim_transaction(connection, lease_seconds=30):
        assert claim(connection) != []
        with claim_transaction(rival, lease_seconds=30):
            assert claim(rival) == []
        assert not is_drained(rival, [PIPELINE])
    assert is_drained(rival, [PIPELINE + 1])


@pytest.mark.on_both_servers
def test_killed_backend_frees_its_items(connection: Connection, rival: Connection) -> None:
    fill(connection, 3)

    def be_killed() -> None:
        with claim_transaction(rival, lease_seconds=30):
            assert len(claim(rival, 3)) == 3
            terminate(connection, rival.info.backend_pid)
            with claim_transaction(connection, lease_seconds=30):
                assert len(claim(connection, 3)) == 3
            renew(rival)

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
def test_silent_worker_loses_its_lease(connection: Connection, rival: Connection) -> None:
    fill(connection, 1)

    def be_silent() -> None:
        with claim_transaction(rival, lease_seconds=1):
            assert claim(rival) != []
            wait_until_gone(connection, rival.info.backend_pid)
            with claim_transaction(connection, lease_seconds=30):
                assert claim(connection) != []
            renew(rival)

    with pytest.raises(LeaseLost, match=r"took the claim back: .*idle-in-transaction"):
        be_silent()
    assert rival.closed


@pytest.mark.on_both_servers
def test_lost_lease_is_noticed_at_the_write_too(connection: Connection, rival: Connection) -> None:
    fill(connection, 1)

    def write_late() -> None:
        with claim_transaction(rival, lease_seconds=1):
            claim(rival)
            wait_until_gone(connection, rival.info.backend_pid)
            rival.execute("insert into pgembed.records (pipeline_id, key) values (1, 'late')")

    with pytest.raises(LeaseLost, match="connection was lost"):
        write_late()
    assert count(connection, "records") == 0


@pytest.mark.on_both_servers
def test_lost_lease_is_noticed_at_the_commit_too(connection: Connection, rival: Connection) -> None:
    fill(connection, 1)

    def commit_late() -> None:
        with claim_transaction(rival, lease_seconds=1):
            finish_items(rival, claim_items(rival, PIPELINE, limit=1))  # type: ignore[arg-type]
            wait_until_gone(connection, rival.info.backend_pid)

    with pytest.raises(LeaseLost, match="connection was lost"):
        commit_late()
    assert count(connection, "work") == 1


def test_connection_that_is_lost_while_items_are_given_back_is_a_lost_lease(
    connection: Connection, rival: Connection
) -> None:
    def give_back_late() -> None:
        with claim_transaction(rival, lease_seconds=30), rival.transaction() as attempt:
            terminate(connection, rival.info.backend_pid)
            raise psycopg.Rollback(attempt)

    with pytest.raises(LeaseLost, match="connection was lost"):
        give_back_late()


@pytest.mark.on_both_servers
def test_progress_keeps_the_lease(connection: Connection, rival: Connection) -> None:
    fill(connection, 1)
    server_now = "select clock_timestamp()"
    started = one_value(connection, server_now)
    with claim_transaction(rival, lease_seconds=1):
        assert claim(rival) != []

        def long_after_the_lease() -> bool:
            renew(rival)
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
    connection: Connection, rival: Connection
) -> None:
    connection.execute("set default_transaction_isolation = 'serializable'")
    with claim_transaction(connection, lease_seconds=30):
        assert connection.execute("show transaction_isolation").fetchone() == ("read committed",)
        before = count(connection, "records")
        rival.execute("insert into pgembed.records (pipeline_id, key) values (1, 'new')")
        assert count(connection, "records") == before + 1
