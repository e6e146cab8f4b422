"""The pages for operators say what the program prints, runs and needs."""

from __future__ import annotations

import plistlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgqueue_embed.db.migrate import check_schema
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.ledger.commits import ROLL_UP
from pgqueue_embed.local_server import LocalServer
from pgqueue_embed.local_server.distribution import program_folder
from pgqueue_embed.monitoring.snapshot import read_snapshot
from pgqueue_embed.pipeline.catalog import load_pipeline, pause_pipeline, resume_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.dead_letters import retry
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.queue.housekeeping import clean_up
from pgqueue_embed.worker.claim_history import ClaimHistory
from pgqueue_embed.worker.crashes import record_crash
from pgqueue_embed.worker.registry import (
    WorkerIdentity,
    heartbeat,
    register,
    report_work,
    sign_off,
)
from tests.support.corpus import texts
from tests.support.documents import (
    MAUDE,
    OPERATIONS,
    REPOSITORY,
    blocks,
    marked_block,
    tables,
)
from tests.support.example_pipeline import event_pipeline
from tests.support.fakes import POISON
from tests.support.oracle import assert_converged
from tests.support.working import drain, open_session


def test_lines_of_the_troubleshooting_table_are_what_the_program_prints() -> None:
    printed = _strings_of_the_program()
    (table,) = [table for table in tables(OPERATIONS) if table[0][0] == "the line"]
    for line, *_ in table[1:]:
        for part in line.strip("`").split("…"):
            assert any(part in text for text in printed), f"nothing prints '{part}' of {line}"


def _strings_of_the_program() -> set[str]:
    files = (REPOSITORY / "pgqueue_embed").rglob("*.py")
    compiled = [compile(file.read_text(encoding="utf-8"), str(file), "exec") for file in files]
    return {text for code in compiled for text in _strings(code)}


def _strings(constant: object) -> Iterator[str]:
    if isinstance(constant, str):
        yield constant
    elif isinstance(constant, (CodeType, tuple, frozenset)):
        parts = constant.co_consts if isinstance(constant, CodeType) else constant
        for part in parts:
            yield from _strings(part)


def test_launchd_file_keeps_one_pgembed_alive() -> None:
    mark = "launchd: parsed by the tests"
    job = plistlib.loads(marked_block(OPERATIONS, mark, "xml").encode())
    assert job["KeepAlive"] is True
    assert job["ProcessType"] == "Interactive"
    shell, option, command = job["ProgramArguments"]
    assert (shell, option) == ("/bin/sh", "-c")
    assert "caffeinate -i -s -w $$ & exec " in command


def test_every_query_of_the_operations_page_runs(connection: Connection) -> None:
    queries = [block for block in blocks(OPERATIONS, "sql") if block.startswith("select")]
    assert len(queries) >= 6
    for query in queries:
        connection.execute(query)


@pytest.fixture
def embedder(
    server: LocalServer, conninfo: str, connection: Connection
) -> Iterator[Callable[[Pipeline], str]]:
    """A function that grants what the operations page says and gives that role's conninfo."""
    connection.execute("create role embedder login password 'embedder'")

    def granted(_pipeline: Pipeline) -> str:
        connection.execute(marked_block(OPERATIONS, "privileges: executed by the tests", "sql"))
        return make_conninfo(conninfo, user="embedder", password="embedder")

    yield granted
    connection.execute("drop owned by embedder")
    connection.execute("drop role embedder")


@pytest.mark.on_both_servers
def test_documented_grants_are_enough_to_work(
    embedder: Callable[[Pipeline], str], connection: Connection
) -> None:
    pipeline = event_pipeline(connection, [*texts(40), POISON, None])
    conninfo = embedder(pipeline)
    with connect(conninfo) as role, open_session(conninfo) as session:
        check_schema(role)
        pipeline = load_pipeline(role, "reports")
        assert enqueue(role, pipeline, Selection(where="mdr_text_key < 1000")) == 42
        drain(session, pipeline)
        assert retry(role, pipeline) == 1
        identity = WorkerIdentity(
            device="cpu", precision="fp32", model="fake", concurrency=1, pipeline_ids=[pipeline.id]
        )
        worker_id = register(role, identity)
        alive: dict[str, Any] = {
            "state": "working",
            "identity": identity,
            "memory_bytes": 1,
        }
        assert heartbeat(role, worker_id, **alive, pipeline_ids=[], unserved={})
        report_work(role, worker_id, ClaimHistory(target_seconds=8).report())
        record_crash(role, worker_id, "crashed")
        sign_off(role, worker_id, "stopped")
        clean_up(role)
        role.execute(ROLL_UP, {"pipeline_id": pipeline.id})
        role.execute("select pgembed.enqueue('reports', array[1, 2, 4711])")
        pause_pipeline(role, pipeline, "paused by a person")
        resume_pipeline(role, pipeline)
        assert read_snapshot(role).workers
        drain(session, pipeline)
    assert_converged(connection, "reports")


@pytest.mark.on_both_servers
def test_documented_grants_let_nobody_change_the_source(
    embedder: Callable[[Pipeline], str], connection: Connection
) -> None:
    pipeline = event_pipeline(connection, list(texts(3)))
    with connect(embedder(pipeline)) as role:
        for statement in (
            "update public.event_text set foi_text = ''",
            "delete from public.event_text",
            "delete from pgembed.pipelines",
            "create table public.of_mine (id int)",
            "create table pgembed.of_mine (id int)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                role.execute(statement)


# MAUDE


def test_maude_files_are_loaded_as_documented(
    server: LocalServer, conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    columns = (
        "MDR_REPORT_KEY MDR_TEXT_KEY TEXT_TYPE_CODE PATIENT_SEQUENCE_NUMBER DATE_REPORT FOI_TEXT"
    )
    header = columns.replace(" ", "|").encode()
    lines = [
        header,
        b'1|11|D|1|05/10/2007|THE PT SAID "OK" AT 37\xb0C, \\N 5" LEFT',
        b"2|12|N|1||",
        b"3|13|D|1|05/10/2007|BROKEN | IN TWO",
        b"THE REST OF A LINE",
        b'4|14|D|1|05/10/2007|"A QUOTE AT THE START\x00\x01',
    ]
    (tmp_path / "foitext2007.txt").write_bytes(b"\r\n".join(lines))
    (tmp_path / "foitext2008.txt").write_bytes(header + b"\r\n5|15|D|1||LAST\r\n")
    mark = "loading: executed by the tests"
    _run(["sh", "-euc", marked_block(MAUDE, mark, "sh")], tmp_path)
    psql = program_folder(18, None, tmp_path) / "psql"
    (tmp_path / "load.sql").write_text(marked_block(MAUDE, mark, "sql"), encoding="utf-8")
    for _ in range(2):
        command = [str(psql), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", "load.sql", conninfo]
        _run(command, tmp_path)
    rows = connection.execute("select mdr_text_key, foi_text from event_text order by 1")
    assert rows.fetchall() == [
        (11, 'THE PT SAID "OK" AT 37°C, \\N 5" LEFT'),
        (12, None),
        (14, '"A QUOTE AT THE START'),
        (15, "LAST"),
    ]
    assert (tmp_path / "refused.txt").read_bytes().count(b"\n") == 2


def _run(command: list[str], folder: Path) -> None:
    finished = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
