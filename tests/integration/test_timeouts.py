"""No session of ours lives by a timeout that was meant for others, and none outlives its own."""

from __future__ import annotations

import time

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgqueue_embed.db import session as sessions
from pgqueue_embed.db.session import TIMEOUTS, Connection, OutOfTime, connect
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.conditions import wait_until
from tests.support.corpus import make_source, texts
from tests.support.fakes import FakeDevice
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.rows import one_value
from tests.support.working import drain, open_session

NAME = "pgembed slow"

RUNNING = """
select count(*) from pg_stat_activity where application_name = %s and state = 'active'
"""


class SlowDevice(FakeDevice):
    """A model that takes longer for a claim than any timeout of the test's database."""

    def embed(self, chunks, **options):  # type: ignore[no-untyped-def]
        time.sleep(0.3)
        return super().embed(chunks, **options)


@pytest.fixture
def impatient(connection: Connection) -> Connection:
    """A session in a database whose new sessions have every timeout, each of a tenth of a second.

    What was made before may take as long as it likes.
    """
    database = sql.Identifier(connection.info.dbname)
    for name, since in TIMEOUTS.items():
        if connection.info.server_version >= since:
            change = sql.SQL("alter database {} set {} = 100")
            connection.execute(change.format(database, sql.Identifier(name)))
    return connection


@pytest.mark.on_both_servers
def test_timeouts_of_a_database_stop_no_progress(impatient: Connection, conninfo: str) -> None:
    make_source(impatient, texts(40))
    pipeline = make_pipeline(impatient)
    with connect(conninfo) as session:
        enqueue(session, pipeline, Selection())
    with open_session(conninfo) as session:
        drain(session, pipeline, SlowDevice())
    assert_converged(impatient, "reports")


@pytest.mark.on_both_servers
@pytest.mark.parametrize("patience_seconds", [None, 20.0])
def test_session_sets_every_timeout_itself(
    impatient: Connection, conninfo: str, patience_seconds: float | None
) -> None:
    wanted = {"statement_timeout": "20s", "lock_timeout": "10s"} if patience_seconds else {}
    with connect(conninfo, patience_seconds=patience_seconds) as session:
        for name, since in TIMEOUTS.items():
            if session.info.server_version >= since:
                value = one_value(session, f"show {name}")
                assert value == wanted.get(name, "0"), name


def test_statement_timeout_that_a_connection_string_asks_for_stays(conninfo: str) -> None:
    asking = make_conninfo(conninfo, options="-c statement_timeout=5s")
    with connect(asking) as session:
        assert session.execute("show statement_timeout").fetchone() == ("5s",)
    with connect(asking, patience_seconds=20) as session:
        assert session.execute("show statement_timeout").fetchone() == ("20s",)


def test_server_ends_what_takes_longer_than_patience(conninfo: str) -> None:
    with connect(conninfo, patience_seconds=0.2) as session:
        with pytest.raises(OutOfTime):
            session.execute("select pg_sleep(60)")
        assert session.execute("select 1").fetchone() == (1,)


def test_statement_that_is_cancelled_early_has_not_run_out_of_time(conninfo: str) -> None:
    with connect(conninfo, patience_seconds=60) as session:
        session.execute(
            """
            create function pg_temp.leave() returns void language plpgsql as
            'begin raise exception using errcode = ''query_canceled''; end'
            """
        )
        with pytest.raises(psycopg.errors.QueryCanceled):
            session.execute("select pg_temp.leave()")


def test_statement_of_a_session_that_is_given_up_does_not_run_on(
    connection: Connection, conninfo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "GRACE_SECONDS", 0.0)
    with connect(conninfo, application_name=NAME, patience_seconds=0.5) as session:
        session.execute("set statement_timeout = 0")
        with pytest.raises(OutOfTime):
            session.execute("select pg_sleep(60)")
        assert session.closed
    wait_until(
        lambda: connection.execute(RUNNING, (NAME,)).fetchone() == (0,), "the statement is over"
    )
