"""Changes, locks, cut connections and lost leases while a claim is worked on."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.claim.size import ClaimSize
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import LeaseLost
from pgqueue_embed.ledger.records import lock_records
from tests.support.claims import (
    allow,
    chunk_texts,
    count,
    counted,
    nothing_was_written,
    once,
    queue_keys,
    states,
)
from tests.support.conditions import (
    is_blocked,
    terminate,
    wait_until,
    wait_until_blocked,
    wait_until_gone,
)
from tests.support.corpus import delete_records, set_text, texts
from tests.support.fakes import POISON, FakeDevice
from tests.support.oracle import assert_converged
from tests.support.pipelines import REPORTS, queue_documents
from tests.support.working import drain, open_session, work_once


class TestChangesWhileTheModelRuns:
    """The world moves between the read and the write."""

    @pytest.mark.parametrize("text", ["Changed meanwhile.", None, POISON.lower()])
    @pytest.mark.on_both_servers
    def test_changed_record_is_queued_again_and_never_stale(
        self, connection: Connection, session: Session, text: str | None
    ) -> None:
        pipeline = queue_documents(connection, texts(3, chunks=2))
        change = once(lambda: set_text(connection, REPORTS, 2, text))
        done = work_once(session, pipeline, FakeDevice(during=change))
        assert done is not None
        assert states(connection)["2"] is None
        assert chunk_texts(connection, 2) == []
        # As it was queued: only what is queued as a change is not waited for by a switch.
        assert connection.execute("select keys, priority from pgembed.work").fetchall() == [
            (["2"], 1)
        ]
        drain(session, pipeline)
        assert_converged(connection, "reports")

    def test_changed_record_goes_back_as_it_was_queued(
        self, connection: Connection, session: Session
    ) -> None:
        """With its priority, which a switch of generations looks at, and counted as before."""
        pipeline = queue_documents(connection, texts(2))
        waiting = "select keys, priority, known from pgembed.work"

        def change() -> None:
            connection.execute("update reports set body = body || '!' where id = 1")

        work_once(session, pipeline, FakeDevice(during=once(change)))
        assert connection.execute(waiting).fetchall() == [(["1"], 1, False)]
        assert counted(connection) == (2, 1)
        drain(session, pipeline)
        change()
        queue_keys(connection, pipeline, 1, known=True, priority=0)
        work_once(session, pipeline, FakeDevice(during=once(change)))
        assert connection.execute(waiting).fetchall() == [(["1"], 0, True)]
        assert counted(connection) == (2, 1)
        drain(session, pipeline)
        assert_converged(connection, "reports")

    def test_embedded_record_that_changes_twice_is_never_stale(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(1))
        drain(session, pipeline)
        old = chunk_texts(connection, 1)
        set_text(connection, REPORTS, 1, "Second text.")
        queue_keys(connection, pipeline, 1, known=True)
        change = once(lambda: set_text(connection, REPORTS, 1, "Third text."))
        work_once(session, pipeline, FakeDevice(during=change))
        assert chunk_texts(connection, 1) == old
        assert counted(connection) == (1, 1)
        drain(session, pipeline)
        assert chunk_texts(connection, 1) == ["Third text."]
        assert_converged(connection, "reports")

    @pytest.mark.on_both_servers
    def test_record_that_is_deleted_meanwhile_leaves_nothing(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(3))
        delete = once(lambda: delete_records(connection, REPORTS, [2]))
        work_once(session, pipeline, FakeDevice(during=delete))
        assert_converged(connection, "reports")

    def test_record_that_comes_back_meanwhile_is_queued_again(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(2))
        delete_records(connection, REPORTS, [2])
        come_back = once(lambda: set_text(connection, REPORTS, 2, "Back again."))
        work_once(session, pipeline, FakeDevice(during=come_back))
        assert states(connection) == {"1": "embedded", "2": None}
        drain(session, pipeline)
        assert_converged(connection, "reports")

    def test_vectors_removed_meanwhile_come_back(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(2))
        drain(session, pipeline)
        queue_keys(connection, pipeline, 1, 2, known=True)
        set_text(connection, REPORTS, 2, "Makes the device run.")
        remove = once(lambda: connection.execute("delete from public.reports_chunks"))
        work_once(session, pipeline, FakeDevice(during=remove))
        drain(session, pipeline)
        assert_converged(connection, "reports")

    @pytest.mark.on_both_servers
    def test_failure_of_an_older_text_is_not_charged(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, [POISON], max_attempts=1)
        cure = once(lambda: set_text(connection, REPORTS, 1, "Cured."))
        work_once(session, pipeline, FakeDevice(during=cure))
        assert states(connection) == {"1": None}
        drain(session, pipeline)
        assert states(connection) == {"1": "embedded"}
        assert_converged(connection, "reports")

    @pytest.mark.parametrize("seen", [False, True], ids=["new", "seen before"])
    @pytest.mark.on_both_servers
    def test_second_worker_with_the_same_record_waits_and_keeps(
        self, connection: Connection, session: Session, other: Session, seen: bool
    ) -> None:
        pipeline = queue_documents(connection, texts(3))
        if seen:
            drain(session, pipeline)
            connection.execute("update public.reports set body = body || ' changed'")
            queue_keys(connection, pipeline, 1, 2, 3, known=True)
        queue_keys(connection, pipeline, 3, 2, 1, known=seen)
        first, second = FakeDevice(hold=threading.Event()), FakeDevice(hold=threading.Event())
        one = ClaimSize(items=1, limit_bytes=1 << 20)
        with ThreadPoolExecutor(2) as pool:
            early = pool.submit(work_once, session, pipeline, first, size=one)
            assert first.entered.wait(30)
            late = pool.submit(work_once, other, pipeline, second, size=one)
            assert second.entered.wait(30)
            # Hold a record as a third worker's write would: both wait, and one is first.
            with connection.transaction():
                lock_records(connection, pipeline, ["1"])
                allow(first)
                wait_until_blocked(connection, session.connection.info.backend_pid)
                allow(second)
                wait_until_blocked(connection, other.connection.info.backend_pid)
            batches = [early.result(30).commit, late.result(30).commit]  # type: ignore[union-attr]
        assert sorted(batch.unchanged for batch in batches) == [0, 3]
        assert sorted(batch.chunks > 0 for batch in batches) == [False, True]
        assert_converged(connection, "reports")

    def test_ddl_on_the_source_completes_at_once_while_the_model_runs(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(3))
        device = FakeDevice(hold=threading.Event())
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(work_once, session, pipeline, device)
            assert device.entered.wait(30)
            connection.execute("set lock_timeout = '100ms'")
            connection.execute("alter table public.reports add column extra int default 1")
            connection.execute("alter table public.reports_chunks add column extra int")
            connection.execute("create index on public.reports (body)")
            allow(device)
            running.result(30)
        assert_converged(connection, "reports")

    @pytest.mark.parametrize("table", ["reports", "reports_chunks"])
    @pytest.mark.on_both_servers
    def test_write_waits_for_a_users_lock_and_succeeds_later(
        self, connection: Connection, conninfo: str, session: Session, table: str
    ) -> None:
        pipeline = queue_documents(connection, texts(3))
        pid = session.connection.info.backend_pid
        waits: list[bool] = []

        def checkpoint() -> None:
            waits.append(is_blocked(connection, pid))

        device = FakeDevice(hold=threading.Event())
        patient = Session(**{**vars(session), "checkpoint": checkpoint})
        with connect(conninfo) as user, ThreadPoolExecutor(1) as pool:
            running = pool.submit(work_once, patient, pipeline, device)
            assert device.entered.wait(30)
            with user.transaction():
                user.execute(f"alter table public.{table} add column later int")
                allow(device)
                wait_until_blocked(connection, pid)
                so_far = len(waits)
                wait_until(lambda: len(waits) > so_far + 1, "the write has tried twice")
                assert not running.done()
            running.result(30)
        assert len(device.embedded_texts) == count(connection, "public.reports_chunks")
        assert_converged(connection, "reports")

    @pytest.mark.on_both_servers
    def test_write_loses_a_deadlock_and_the_user_never_does(
        self, connection: Connection, conninfo: str, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(2))
        device = FakeDevice(hold=threading.Event())
        pid = session.connection.info.backend_pid
        with connect(conninfo) as user, ThreadPoolExecutor(1) as pool:
            running = pool.submit(work_once, session, pipeline, device)
            assert device.entered.wait(30)
            with user.transaction():
                user.execute("lock table public.reports_chunks in access exclusive mode")
                allow(device)
                wait_until_blocked(connection, pid)
                # The worker holds the records' rows now and waits for the table.
                user.execute("update pgembed.records set last_error = 'by a user' where key = '1'")
            assert running.result(30) is not None
        assert_converged(connection, "reports")


class TestLostConnections:
    """A claim whose connection ends is rolled back, and charges nobody."""

    @pytest.mark.parametrize("lost", ["connection", "side"])
    @pytest.mark.on_both_servers
    def test_connection_lost_in_mid_claim_rolls_back(
        self, connection: Connection, conninfo: str, isolation: str, lost: str
    ) -> None:
        del isolation
        pipeline = queue_documents(connection, texts(5))
        with open_session(conninfo) as session:
            ends = getattr(session, lost).info.backend_pid

            def cut() -> None:
                terminate(connection, ends)

            if lost == "connection":
                with pytest.raises(LeaseLost):
                    work_once(session, pipeline, FakeDevice(during=cut))
                assert nothing_was_written(connection)
            else:
                # The second connection is not needed any more once the source is read.
                assert work_once(session, pipeline, FakeDevice(during=once(cut))) is not None
        with open_session(conninfo) as session:
            drain(session, pipeline)
        assert_converged(connection, "reports")

    @pytest.mark.on_both_servers
    def test_both_connections_lost_leave_an_orphan_that_counts_for_nothing(
        self, connection: Connection, conninfo: str
    ) -> None:
        pipeline = queue_documents(connection, texts(2))
        with open_session(conninfo) as session:
            pids = [each.info.backend_pid for each in (session.connection, session.side)]

            def cut() -> None:
                for pid in pids:
                    terminate(connection, pid)

            with pytest.raises(LeaseLost):
                work_once(session, pipeline, FakeDevice(during=cut))
        assert count(connection, "pgembed.attempts") == 1
        with open_session(conninfo, worker_id=2) as session:
            drain(session, pipeline)
        assert_converged(connection, "reports")

    @pytest.mark.on_both_servers
    def test_lease_that_runs_out_while_the_model_hangs_frees_the_work(
        self, connection: Connection, conninfo: str
    ) -> None:
        pipeline = queue_documents(connection, texts(3))
        with open_session(conninfo, lease_seconds=1) as hung, open_session(conninfo) as other:
            pid = hung.connection.info.backend_pid

            def hang() -> None:
                wait_until_gone(connection, pid)
                drain(other, pipeline)

            with pytest.raises(LeaseLost):
                work_once(hung, pipeline, FakeDevice(during=hang))
        assert_converged(connection, "reports")
