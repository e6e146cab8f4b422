"""Workers behind pgbouncer in transaction mode, where it is installed: busy, frozen, cut off."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgqueue_embed.db import session as sessions
from pgqueue_embed.db.migrate import migrate
from pgqueue_embed.db.session import Connection, OutOfTime, connect
from pgqueue_embed.errors import UsageError
from pgqueue_embed.local_server.account import server_account
from pgqueue_embed.vector_search.index import plan
from pgqueue_embed.vector_search.index_build import build_index
from pgqueue_embed.vector_search.index_plan import IndexOptions
from tests.servers import make_server_folder
from tests.support.conditions import wait_until
from tests.support.corpus import make_source, texts
from tests.support.light import light_workers
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline, queue_all
from tests.support.programs import needs_program

PGBOUNCER = shutil.which("pgbouncer")

pytestmark = needs_program("pgbouncer")

CONFIGURATION = """
[databases]
{dbname} = host={host} port={port} dbname={dbname} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 12
logfile = {folder}/pgbouncer.log
"""


@dataclass
class Bouncer:
    """A running pgbouncer and the way through it."""

    process: subprocess.Popen[bytes]
    conninfo: str


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def bouncer(conninfo: str) -> Iterator[Bouncer]:
    """A pgbouncer in transaction mode before the test's database."""
    folder = make_server_folder()
    port = free_port()
    file = folder / "pgbouncer.ini"
    values = {**conninfo_to_dict(conninfo), "listen_port": port, "folder": folder}
    file.write_text(CONFIGURATION.format(**values), encoding="utf-8")
    process = _start(folder, file)
    through = make_conninfo(conninfo, host="127.0.0.1", port=port)
    try:
        wait_until(lambda: answers(through), "pgbouncer answers")
        yield Bouncer(process, through)
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder)


def _start(folder: Path, file: Path) -> subprocess.Popen[bytes]:
    """Start it as an ordinary user, since it refuses to be root."""
    account = server_account(folder)
    identity: dict[str, Any] = (
        {} if account is None else {"user": account.uid, "group": account.gid}
    )
    if account is not None:
        os.chown(folder, account.uid, account.gid)
    assert PGBOUNCER is not None
    command = [PGBOUNCER, "--quiet", str(file)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd="/", **identity)


def answers(conninfo: str) -> bool:
    try:
        with psycopg.connect(conninfo):
            return True
    except psycopg.OperationalError:
        return False


def test_workers_drain_a_queue_through_pgbouncer(
    connection: Connection, bouncer: Bouncer, tmp_path: Path
) -> None:
    queue_all(connection, texts(600), partition_by="hash:16", text=False)
    with light_workers(bouncer.conninfo, tmp_path, 2, concurrency=2) as running:
        assert [worker.wait() for worker in running] == ["drained"] * 2
        assert not any("claim given back" in worker.log() for worker in running)
    assert_converged(connection, "reports")


def test_sessions_of_others_keep_their_search_path(bouncer: Bouncer) -> None:
    path = "select current_setting('search_path')"
    with connect(bouncer.conninfo) as session:
        assert session.execute(path).fetchone() == ("pg_catalog, pg_temp",)
        with session.transaction():
            assert session.execute(path).fetchone() == ("pg_catalog, pg_temp",)
        with psycopg.connect(bouncer.conninfo) as other:
            assert other.execute(path).fetchone() == ('"$user", public',)


def test_what_needs_a_session_of_its_own_is_refused(
    connection: Connection, bouncer: Bouncer
) -> None:
    pipeline = make_pipeline(connection, make_source(connection, texts(1)))
    with connect(bouncer.conninfo) as session, pytest.raises(UsageError, match="needs a session"):
        build_index(session, pipeline, plan(session, pipeline, IndexOptions()))
    connection.execute("drop schema pgembed cascade")
    with pytest.raises(UsageError, match="pgembed migrate needs a session of its own"):
        migrate(bouncer.conninfo)


def test_claim_behind_a_frozen_pgbouncer_is_freed_and_its_worker_comes_back(
    connection: Connection, bouncer: Bouncer, tmp_path: Path
) -> None:
    queue_all(connection, texts(200))
    busy = "select count(*) from pgembed.in_flight"
    with light_workers(bouncer.conninfo, tmp_path, 1, batch_seconds=0.05) as [worker]:
        wait_until(lambda: connection.execute(busy).fetchone() != (0,), "a claim is in flight")
        bouncer.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: connection.execute(busy).fetchone() == (0,), "it is freed", seconds=5)
        wait_until(lambda: "no answer from the server" in worker.log(), "the worker notices")
        bouncer.process.send_signal(signal.SIGCONT)
        assert worker.wait() == "drained"
    assert_converged(connection, "reports")


def sleep_without_timeout(session: Connection) -> None:
    with session.transaction():
        session.execute("set local statement_timeout = 0")
        session.execute("select pg_sleep(60)")


def test_statement_through_pgbouncer_ends_when_it_takes_too_long(
    connection: Connection, bouncer: Bouncer, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = "select count(*) from pg_stat_activity where state = 'active' and query like %s"
    monkeypatch.setattr(sessions, "GRACE_SECONDS", 0.5)
    with connect(bouncer.conninfo, patience_seconds=0.5) as session:
        with pytest.raises(OutOfTime, match="took longer"):
            session.execute("select pg_sleep(60)")
        with pytest.raises(OutOfTime, match="no answer"):
            sleep_without_timeout(session)
    sleeping = (running, ("select pg_sleep%",))
    wait_until(lambda: connection.execute(*sleeping).fetchone() == (0,), "no statement runs on")
