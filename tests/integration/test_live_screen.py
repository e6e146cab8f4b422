"""The live screen on a real terminal: what it shows, what keys do, and what it leaves behind."""

from __future__ import annotations

import os
import re
import signal
from types import SimpleNamespace
from typing import cast

import psutil
import pytest
from rich.cells import cell_len

from pgqueue_embed.claim.process import Session
from pgqueue_embed.cli.live import Screen
from pgqueue_embed.cli.terminal import ENTER, LEAVE, Terminal
from pgqueue_embed.db.session import Connection
from pgqueue_embed.monitoring.snapshot import read_snapshot
from pgqueue_embed.monitoring.watcher import Watcher
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.dead_letters import count_failures
from tests.support.corpus import make_source, texts
from tests.support.fakes import POISON
from tests.support.pipelines import make_pipeline, queue_documents
from tests.support.prepared import filled_by
from tests.support.rows import one_value
from tests.support.tty import Tty, on_terminal
from tests.support.working import embed_documents

BLACK_TO_WHITE = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-7]|9[0-7])m")


def make_reports(connection: Connection, session: Session) -> None:
    documents = [*[f"{POISON} {n}" for n in range(5)], *texts(3)]
    embed_documents(connection, session, documents, max_attempts=1)
    connection.execute(
        "update pgembed.records set last_error = case when key < '5' then 'no room for ' || key"
        " else 'odd \x1b[2J letters' end where state = 'dead'"
    )


PREPARED = {"reports": filled_by(make_reports)}


@pytest.fixture
def reports(connection: Connection) -> Pipeline:
    """A finished pipeline with two kinds of dead letters: 4 and 1."""
    return load_pipeline(connection, "reports")


def state(connection: Connection) -> str:
    return str(one_value(connection, "select state from pgembed.pipelines"))


def test_keys_do_what_the_commands_do_and_ask_first(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    with on_terminal(conninfo, "status", "--watch", columns=120) as tty:
        before = tty.attributes()
        tty.wait_for("p pause")
        assert tty.is_raw()
        assert BLACK_TO_WHITE.search(tty.shown)
        assert "5 dead" in tty.text()
        assert tty.widest() <= 120
        tty.resize(60, 30)
        tty.wait_until(lambda: tty.widest() <= 60, "it is narrow enough")
        tty.wait_for("p pause")
        assert "reports" in tty.text()
        assert "5 dead" in tty.text()

        tty.press("p")
        tty.wait_for("pause reports? Workers finish what they hold. [y/n]")
        tty.press("n")
        tty.wait_for("p pause")
        assert state(connection) == "active"
        tty.press("p")
        tty.wait_for("[y/n]")
        tty.press("y")
        tty.wait_for("paused reports")
        tty.wait_for("p resume")
        assert state(connection) == "paused"
        tty.press("p")
        tty.wait_for("resume reports?")
        tty.press("y")
        tty.wait_for("resumed reports")
        assert state(connection) == "active"

        tty.press("f")
        tty.wait_for("1 4 reports: no room for N (e.g.")
        assert "2 1 reports: odd" in tty.text()
        tty.press("1")
        tty.wait_for("retry 4 dead letters of reports: no room for N? [y/n]")
        tty.press("y")
        tty.wait_for("put 4 dead letters of reports back into the queue")
        assert count_failures(connection, reports) == 1
        assert tty.widest() <= 60
        tty.press("f")
        tty.wait_for("r retry dead")
        tty.wait_for("1 dead")
        tty.press("r")
        tty.wait_for("retry 1 dead letter of reports?")
        tty.press("y")
        tty.wait_for("put 1 dead letter of reports back into the queue")
        assert tty.widest() <= 60

        tty.press("q")
        assert tty.wait() == 0
        assert tty.attributes() == before
        assert tty.shown.count(ENTER) == tty.shown.count(LEAVE) == 1
        assert tty.shown.rstrip().endswith(LEAVE)


def test_a_key_that_the_role_may_not_use_says_so(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    from psycopg.conninfo import make_conninfo

    connection.execute("create role looker login password 'secret'")
    try:
        connection.execute(
            "grant usage on schema pgembed to looker;"
            " grant select on all tables in schema pgembed to looker"
        )
        with on_terminal(
            make_conninfo(conninfo, user="looker", password="secret"), "status", "--watch"
        ) as tty:
            tty.wait_for("p pause")
            tty.press("p")
            tty.wait_for("[y/n]")
            tty.press("y")
            tty.wait_for("not done: the database refused: permission denied")
            assert state(connection) == "active"
    finally:
        connection.execute("drop owned by looker; drop role looker")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_terminal_is_as_before_however_it_ends(
    conninfo: str, reports: Pipeline, number: signal.Signals
) -> None:
    with on_terminal(conninfo, "status", "--watch") as tty:
        before = tty.attributes()
        tty.wait_for("p pause")
        tty.program.send_signal(number)
        tty.wait()
        assert tty.attributes() == before
        assert "Traceback" not in tty.shown
        assert tty.shown.rindex(LEAVE) > tty.shown.rindex(ENTER)


def test_terminal_is_given_back_while_it_is_stopped(conninfo: str, reports: Pipeline) -> None:
    with on_terminal(conninfo, "status", "--watch") as tty:
        before = tty.attributes()
        tty.wait_for("p pause")
        process = tty.program
        for _ in range(2):
            tty.press("\x1a")
            tty.wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "it stops")
            tty.read()
            assert tty.attributes() == before
            assert tty.shown.rindex(LEAVE) > tty.shown.rindex(ENTER)
            tty.program.send_signal(signal.SIGCONT)
            tty.wait_until(tty.is_raw, "it goes on")
            tty.wait_until(lambda: tty.read().endswith("\x1b[?2026l"), "it is drawn")
        tty.press("q")
        assert tty.wait() == 0
        assert tty.attributes() == before


def test_resized_terminal_is_filled_and_nothing_of_before_is_left(
    conninfo: str, reports: Pipeline
) -> None:
    """Without any colour, too, where none is wanted."""
    size = {"columns": 120, "lines": 40}
    wanted = {"NO_COLOR": "1"}
    with on_terminal(conninfo, "status", "--watch", **size, environment=wanted) as tty:
        tty.wait_for("p pause")
        tty.resize(50, 12)
        tty.wait_until(lambda: len(tty.picture()) == 12, "it has twelve lines")
        assert tty.widest() <= 50
        assert "p pause" in tty.picture()[-1]
        cleared = tty.shown.rindex("\x1b[2J")
        assert tty.shown.index("\x1b[?2026h", cleared) > cleared
        tty.resize(100, 30)
        tty.wait_until(lambda: len(tty.picture()) == 30, "it has thirty lines")
        assert not BLACK_TO_WHITE.search(tty.shown)


def test_dumb_terminal_gets_lines_and_no_sequence(conninfo: str, reports: Pipeline) -> None:
    with on_terminal(conninfo, "status", "--watch", environment={"TERM": "dumb"}) as tty:
        tty.wait_until(lambda: "reports: 3/8 records" in tty.read(), "a line is said")
        tty.program.send_signal(signal.SIGINT)
        assert tty.wait() == 0
        assert "\x1b" not in tty.shown


def test_work_shows_itself_and_says_what_it_has_done_in_the_end(
    conninfo: str, connection: Connection
) -> None:
    queue_documents(connection, texts(40))
    with on_terminal(conninfo, "work", "--drain", columns=60) as tty:
        before = tty.attributes()
        assert tty.wait() == 0
        assert tty.attributes() == before
        after = tty.shown[tty.shown.rindex(LEAVE) :]
        assert re.search(r"reports: 40/40 records · 100\.0 % · .* · in \d+ s", after)
        assert "pgembed index reports" in after


def test_what_is_logged_behind_the_screen_is_said_when_it_is_left(
    conninfo: str, connection: Connection
) -> None:
    queue_documents(connection, texts(5))
    connection.execute("alter table reports drop column body")
    with on_terminal(conninfo, "work", "--drain") as tty:
        assert tty.wait() == 1
        before, after = tty.shown.rsplit(LEAVE, 1)
        assert ENTER in before
        assert re.search(r"\[error +\] pipeline paused .*column source.body does not exist", after)


def test_who_asks_for_the_log_gets_it_and_no_screen(conninfo: str, connection: Connection) -> None:
    queue_documents(connection, [*texts(5), POISON], max_attempts=1)
    with on_terminal(conninfo, "work", "--drain", "--log-level", "info") as tty:
        assert tty.wait() == 0
        assert "batch committed" in tty.shown
        assert ENTER not in tty.shown


def crash(tty: Tty) -> None:
    """Kill the worker process of a `work` that is on the terminal."""
    (worker,) = tty.program.children()
    worker.kill()


def test_crash_of_a_worker_is_told_and_q_stops_work_as_ctrl_c_does(
    conninfo: str, connection: Connection
) -> None:
    queue_documents(connection, texts(5))
    with on_terminal(conninfo, "work", columns=120) as tty:
        before = tty.attributes()
        tty.wait_for("● ")
        tty.wait_for("queue empty" if "queue empty" in tty.text() else "100.0 %")
        crash(tty)
        tty.wait_for("worker process died")
        tty.wait_for("restarted")
        tty.press("q")
        assert tty.wait() == 130
        assert tty.attributes() == before
        assert "nothing is in hand" in tty.shown
        told_in_the_end = tty.shown[tty.shown.rindex(LEAVE) :]
        assert "worker process died" in told_in_the_end
        assert "reports: 5/5 records" in told_in_the_end
        assert "Traceback" not in tty.shown


WORKERS = """
insert into pgembed.workers
    (host, pid, device, precision, model, version, concurrency, pipeline_ids, records,
    memory_bytes, heartbeat_at, last_commit_at)
select host, 40001, 'cuda:1', 'fp16', 'm', '1', 2, array[%(id)s::bigint], 1234567,
    9000000000, clock_timestamp() - interval '200 seconds',
    clock_timestamp() - interval '227 seconds'
from unnest(array['studio-ultra-1.lan', 'air-4']) as host
"""
COMMIT = """
insert into pgembed.batches (pipeline_id, worker_id, committed_at, records, chunks)
select %(id)s, id, clock_timestamp() - n * interval '1 minute', 99, 99
from pgembed.workers, generate_series(0, 29) as n
"""


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_keys_are_for_what_is_shown_and_what_matters_is_not_cut(
    conninfo: str, connection: Connection, reports: Pipeline, columns: int
) -> None:
    source = make_source(connection, [], table="accounts")
    make_pipeline(connection, source, name="accounts")
    for statement in (WORKERS, COMMIT):
        connection.execute(statement, {"id": reports.id})
    connection.execute("update pgembed.records set last_error = repeat('far too long ', 20)")
    pressed: list[str] = []
    drawn: list[list[str]] = []
    terminal = SimpleNamespace(
        size=os.terminal_size((columns, 24)),
        has_keys=True,
        keys=lambda _wait: iter(pressed),
        is_resized=lambda: False,
        draw=drawn.append,
    )
    watcher = SimpleNamespace(latest=read_snapshot(connection), trouble=None)
    screen = Screen(
        cast(Terminal, terminal),
        cast(Watcher, watcher),
        conninfo,
        on_quit=lambda: None,
        quit_words="quit (workers go on)",
    )

    def lines() -> list[str]:
        screen.update()
        return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in drawn[-1]]

    first = lines()
    assert "accounts" not in "".join(first)
    assert all(key in first[-1] for key in ("p pause", "f failures", "r retry dead"))
    assert "Tab" not in first[-1], "there is no next one"
    title = next(n for n, line in enumerate(first) if line.startswith("Worker"))
    assert [line.split(":")[0] for line in first[title + 2 : title + 4]] == [
        "air-4",
        "studio-ultra-1",
    ]
    assert first[title + 4] == ""
    assert re.search(r"5 dead  far too.*…  \(e\.g\. \d\)$", "\n".join(first), re.MULTILINE)
    pressed[:] = ["p"]
    assert lines()[-1] == "pause reports? Workers finish what they hold. [y/n]"
    pressed[:] = ["n", "f", "1"]
    assert re.search(r"retry 5 dead letters of reports: far too.*… \[y/n\]$", lines()[-1])
    assert all(cell_len(line) <= columns for line in lines())
