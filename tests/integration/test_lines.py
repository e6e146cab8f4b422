"""Lines where there is no terminal: one a minute, and one for each event."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from psycopg.conninfo import make_conninfo

from pgqueue_embed.claim.process import Session
from pgqueue_embed.cli import following, minute_lines
from pgqueue_embed.cli.live import ending
from pgqueue_embed.db.session import Connection
from pgqueue_embed.monitoring import words
from pgqueue_embed.monitoring.snapshot import Snapshot, read_snapshot
from pgqueue_embed.monitoring.watcher import Watcher
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.commands import pgembed
from tests.support.corpus import make_source, texts
from tests.support.pipelines import make_pipeline, queue_documents
from tests.support.processes import workers
from tests.support.working import embed_documents


def test_work_says_how_far_it_is_in_place_of_a_line_for_each_claim(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    queue_documents(connection, texts(5))
    with workers(conninfo, tmp_path, 1, ["--drain"]) as [worker]:
        assert worker.wait() == 0, worker.log()
    assert "reports: 5/5 records · 100.0 %" in worker.log()
    assert "batch committed" not in worker.log()


def test_work_that_cannot_begin_says_one_line(
    conninfo: str, empty_conninfo: str, tmp_path: Path
) -> None:
    cases = {
        empty_conninfo: ("no schema pgembed yet; run: pgembed migrate", []),
        conninfo: ("there is no pipeline 'missing'", ["--pipeline", "missing"]),
        make_conninfo(conninfo, dbname="nowhere"): ('database "nowhere" does not exist', []),
    }
    for number, (place, (says, arguments)) in enumerate(cases.items()):
        (folder := tmp_path / str(number)).mkdir()
        with workers(place, folder, 1, ["--drain", *arguments]) as [worker]:
            assert worker.wait() != 0
        (line,) = worker.log().splitlines()
        assert says in line


def test_lines_say_what_is_new_and_never_what_is_not_known(
    connection: Connection,
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    embed_documents(connection, session, texts(3))
    monkeypatch.setattr(minute_lines, "LINE_SECONDS", 0.0)
    seen: Any = SimpleNamespace(latest=None, trouble=None)
    lines = following.Lines(cast(Watcher, seen))

    def said() -> list[str]:
        lines.update()
        return capsys.readouterr().out.splitlines()

    assert said() == []
    seen.latest = read_snapshot(connection)
    (line,) = said()
    assert line.startswith("reports: 3/3 records · 100.0 % · ")
    assert said() == []
    seen.latest = with_event(seen.latest, "paused")
    assert [each.partition(" ")[2] for each in said()] == ["reports paused: by a person"]
    seen.trouble = "no answer"
    assert said() == ["how it gets on is not known: no answer"]
    assert said() == []
    seen.trouble = None
    assert said() == [line]
    monkeypatch.setattr(following, "UNCHANGED_SECONDS", 0.0)
    seen.trouble = "no answer"
    assert said() == said() != []


def test_what_hinders_the_first_look_is_said_once_it_has_not_ended_the_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: Any = SimpleNamespace(latest=None, trouble="no answer")
    lines = following.Lines(cast(Watcher, seen))
    lines.update()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(following, "BEGINNING_SECONDS", 0.0)
    lines.update()
    assert capsys.readouterr().out == "how it gets on is not known: no answer\n"


def test_line_says_what_is_done_and_waits_again(connection: Connection, session: Session) -> None:
    """Else it would read as three of three, and none of them done."""
    pipeline = embed_documents(connection, session, texts(3))
    enqueue(connection, pipeline, Selection(everything=True))
    (shown,) = read_snapshot(connection).pipelines
    assert words.line(shown).startswith("reports: 3/3 records · 0.0 % · 3 changed · ")


def test_last_lines_are_of_what_was_worked_on_and_of_what_is_not_done(
    connection: Connection, session: Session
) -> None:
    """One pipeline with dead letters from long ago hid all that had just been embedded."""
    embed_documents(connection, session, texts(3))
    others = make_source(connection, texts(1), table="others")
    waiting = make_pipeline(connection, others, name="waiting")
    enqueue(connection, waiting, Selection())
    shown = read_snapshot(connection)

    def names(lines: list[str]) -> list[str]:
        return sorted(line.partition(":")[0] for line in lines)

    assert names(ending(shown, seconds=60.0)) == ["reports", "waiting"]
    assert names(ending(shown)) == ["waiting"]


def test_event_says_no_word_twice() -> None:
    row = {"pipeline": None, "host": "mini", "pid": 7, "kind": "stopped", "detail": "stopped"}
    assert words.event(row) == "mini:7 stopped"
    assert words.event({**row, "detail": "drained"}) == "mini:7 stopped: drained"


def test_command_without_a_terminal_says_nothing_but_its_lines(
    connection: Connection, session: Session, conninfo: str
) -> None:
    """An empty line would be a letter from cron each night."""
    embed_documents(connection, session, texts(3))
    ran = pgembed(conninfo, "enqueue", "reports")
    assert (ran.stdout, ran.stderr) == ("queued 0 records of public.reports\n", "")


def with_event(snapshot: Snapshot, kind: str) -> Snapshot:
    event = {
        "happened_at": snapshot.now + timedelta(seconds=1),
        "kind": kind,
        "pipeline": "reports",
        "host": None,
        "pid": None,
        "detail": "by a person",
    }
    return replace(snapshot, events=[event, *snapshot.events])
