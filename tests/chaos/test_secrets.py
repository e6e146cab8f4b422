"""No password shows in what a failing worker says, its tracebacks included."""

from __future__ import annotations

from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from pgqueue_embed.db.session import Connection
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.corpus import make_source, texts
from tests.support.fault_points import Fault
from tests.support.light import light_process, light_workers
from tests.support.pipelines import make_pipeline
from tests.support.proxy import proxied


@pytest.fixture(autouse=True)
def _queued(connection: Connection) -> None:
    make_source(connection, texts(10))
    enqueue(connection, make_pipeline(connection), Selection())


def password_of(conninfo: str) -> str:
    password = str(conninfo_to_dict(conninfo)["password"])
    assert len(password) > 8
    return password


def test_traceback_of_a_fault_of_the_program_shows_no_password(
    conninfo: str, tmp_path: Path
) -> None:
    fault = Fault("after_read", "raise", tmp_path / "struck")
    with light_process(conninfo, tmp_path, fault=fault) as worker:
        worker.wait()
    assert "RuntimeError: a fault of the program itself" in worker.log()
    assert "Traceback" in worker.log()
    assert password_of(conninfo) not in worker.log()


def test_worker_that_loses_its_database_shows_no_password(conninfo: str, tmp_path: Path) -> None:
    fault = Fault("mid_embed", "terminate", tmp_path / "struck")
    with proxied(conninfo) as (proxy, through):
        proxy.refuse()
        with light_workers(through, tmp_path, 1) as [refused]:
            refused.thread.join(30)
        assert "cannot connect to" in str(refused.error)
        proxy.refuse(False)
        with light_workers(through, tmp_path, 1, fault=fault) as [worker]:
            assert worker.wait() == "drained"
    said = f"{refused.error} {refused.log()} {worker.log()}"
    assert "claim given back" in said
    assert password_of(conninfo) not in said
