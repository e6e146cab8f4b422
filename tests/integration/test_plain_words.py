"""Messages name the way out of a mistake, and nothing that was not typed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgqueue_embed import Database
from pgqueue_embed.cli import following as shown_meanwhile
from pgqueue_embed.cli import minute_lines as lines
from pgqueue_embed.cli.wrong_arguments import GONE
from pgqueue_embed.db.dsn import describe_dsn
from pgqueue_embed.db.errors import refused
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import PgembedError
from pgqueue_embed.local_server import default
from pgqueue_embed.pipeline.catalog import pause_at_fault
from pgqueue_embed.quantities import duration
from pgqueue_embed.queue import deleted
from pgqueue_embed.queue.capture import install
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.commands import pgembed
from tests.support.corpus import make_source, texts
from tests.support.pipelines import REPORTS, make_pipeline
from tests.support.rows import one_value
from tests.support.working import drain, open_session

README = Path(__file__).parents[2] / "README.md"


def said(ran: object) -> str:
    """Return all that a command printed or failed with, without the borders of a box."""
    printed = f"{ran.stdout} {ran.stderr} {ran.error}"  # type: ignore[attr-defined]
    return " ".join(printed.replace("│", " ").split())


def options_of_macm4vecflow() -> set[str]:
    """Return the options that README's table for its users names."""
    table = README.read_text().split("## Coming from MacM4VecFlow")[1].split("\n## ")[0]
    left = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
    return set(re.findall(r"`(--[a-z-]+)", " ".join(left)))


def test_every_option_of_macm4vecflow_works_or_says_what_replaces_it(conninfo: str) -> None:
    options = options_of_macm4vecflow()
    assert len(options) > 10
    of_all = set(pgembed(conninfo, "work", "--help").stdout.split())
    for option in options - of_all:
        told = said(pgembed(conninfo, "work", option, "coordinator"))
        assert re.search(f"no option {option}: (it belongs to|there) ", told), told
    for option, way in GONE.items():
        for command in ("work", "run"):
            assert way in said(pgembed(conninfo, command, option, "8000"))
    assert GONE["--role"] in said(pgembed(conninfo, "--role", "coordinator"))


def test_option_in_front_of_its_command_is_said_to_go_behind_it(conninfo: str) -> None:
    assert "write it behind the command" in said(pgembed(conninfo, "--dsn", "x", "status"))


def test_target_that_is_taken_is_said_to_be_whose_it_is(
    conninfo: str, connection: Connection
) -> None:
    make_source(connection, texts(2))
    make_pipeline(connection)
    line = ("create", "other", "--source-table", "reports", "--text-field", "body")
    ran = pgembed(conninfo, *line, "--target-table", "reports_chunks")
    assert ran.exit_code == 2
    assert "for the vectors of pipeline 'reports'; name another with --target-table" in said(ran)
    connection.execute("create table public.reports_vectors (precious text)")
    ran = pgembed(conninfo, *line)
    assert "is of no pipeline" in said(ran)
    assert "pgembed adopt" in said(ran)
    assert "drop" not in said(ran)


@pytest.mark.parametrize(
    ("rename", "missing"),
    [
        ("rename to documents", "there is no public.reports"),
        ("rename column body to text", "public.reports has no column body"),
        ("rename column id to number", "public.reports has no column id"),
    ],
)
def test_pause_of_a_renamed_source_names_what_follows_it(
    connection: Connection, rename: str, missing: str
) -> None:
    make_source(connection, texts(2))
    pipeline = make_pipeline(connection)
    reason = "select state_reason from pgembed.progress"
    pause_at_fault(connection, pipeline, "reading: on fire")
    assert connection.execute(reason).fetchone() == (
        "reading: on fire; mend it and run: pgembed resume reports",
    )
    connection.execute(f"alter table public.reports {rename}")
    pause_at_fault(connection, pipeline, "reading: it does not exist")
    assert connection.execute(reason).fetchone() == (
        f"reading: it does not exist; {missing}; if it has another name now: pgembed alter reports"
        " --follow-source; mend it and run: pgembed resume reports",
    )


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("id >", "syntax error at end of input"),
        ("id > 1 and", "syntax error at end of input"),
        ("id > 1 limit 5 5", 'syntax error at or near "5"'),
        ("(id > 1", "syntax error at end of input"),
        ("1", "argument of WHERE must be type boolean, not type integer"),
        ("", "--where is empty"),
        ("nope = 1", 'column "nope" does not exist'),
        ("id > 1) or (id < 5", 'syntax error at or near ")"'),
        ("true; drop table public.reports", "more than one statement"),
        ("true then true end; drop table public.reports; select case when true", "syntax error"),
        ("true then true end or case when true", "syntax error"),
    ],
)
def test_condition_is_refused_with_words_about_what_was_typed(
    conninfo: str, connection: Connection, where: str, reason: str
) -> None:
    make_source(connection, texts(2))
    make_pipeline(connection)
    ran = pgembed(conninfo, "enqueue", "reports", "--where", where)
    assert ran.exit_code == 2
    assert reason in said(ran)
    assert "then" in where or not re.search("then|case", said(ran), re.IGNORECASE)
    assert one_value(connection, "select count(*) from public.reports") == 2


def test_table_or_column_that_is_not_there_is_answered_with_the_nearest(
    conninfo: str, connection: Connection
) -> None:
    make_source(connection, texts(2))
    for name in ("aaa", "bbb", "ccc", "ddd", "eee", "fff"):
        connection.execute(f"create table public.{name} (id bigint primary key)")
    line = ("create", "x", "--text-field")
    for wrong in ("report", "Reports", "public.repotrs", "other.reports"):
        told = said(pgembed(conninfo, *line, "body", "--source-table", wrong))
        assert "; did you mean public.reports?" in told
    told = said(pgembed(conninfo, *line, "body", "--source-table", "zzz"))
    assert "there is public.aaa, public.bbb, public.ccc, public.ddd, public.eee and 2 more" in told
    told = said(pgembed(conninfo, *line, "boddy", "--source-table", "reports"))
    assert "has no column 'boddy'; did you mean body?; it has id, body" in told


def test_flag_is_shown_without_a_type_that_nobody_can_give(conninfo: str) -> None:
    for words in (("--help",), ("work", "--help"), ("create", "--help")):
        shown = pgembed(conninfo, *words).stdout
        assert "<bool>" not in shown
        assert re.search(r"--(version|drain|view)  ", shown)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.4, "0 s"),
        (89, "1 min 29 s"),
        (119, "1 min 59 s"),
        (120, "2 min"),
        (3599, "59 min 59 s"),
        (3660, "1 h 1 min"),
        (86_400, "1 d"),
        (200_000, "2 d 7 h"),
    ],
)
def test_length_of_time_loses_less_than_its_second_unit(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_name_with_a_space_is_quoted_in_what_to_type(
    conninfo: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deleted, "UNASKED_RECORDS", 5)
    source = make_source(connection, texts(40))
    name = "my reports"
    pipeline = make_pipeline(connection, source, name=name)
    enqueue(connection, pipeline, Selection())
    with open_session(conninfo) as session:
        drain(session, pipeline)
    told = [said(pgembed(conninfo, "pause", name)), said(pgembed(conninfo, "sync", name))]
    told.append(said(pgembed(conninfo, "create", name, "--source-table", "reports")))
    told.append(said(pgembed(conninfo, "adopt", name, "--source-table", "reports")))
    connection.execute("delete from public.reports where id > 2")
    told += [said(pgembed(conninfo, "resume", name)), said(pgembed(conninfo, "enqueue", name))]
    told.append(said(pgembed(conninfo, "status")))
    assert "--allow-deletes" in " ".join(told)
    for each in told:
        assert not re.search(r"pgembed [a-z]+ my reports", each), each


def test_function_that_relies_on_the_path_is_told_how_not_to(
    conninfo: str, connection: Connection
) -> None:
    make_source(connection, texts(2), table="base")
    connection.execute(
        "create table public.lookup (word text);"
        "create function public.looked_up(word text) returns text language plpgsql as"
        " 'begin perform 1 from lookup; return word; end';"
        "create view public.reports as select id, public.looked_up(body) as body from public.base"
    )
    create = ("create", "reports", "--source-table", "reports", "--text-field", "body")
    told = said(pgembed(conninfo, *create))
    assert 'relation "lookup" does not exist; if it is there, a function names it' in told
    connection.execute("alter function public.looked_up set search_path to public, pg_temp")
    assert make_pipeline(connection).key.names == ("id",)


@pytest.fixture
def stranger(connection: Connection) -> Iterator[None]:
    """A role without any right."""
    connection.execute("create role stranger login password 'x'")
    yield
    connection.execute("drop owned by stranger; drop role stranger")


@pytest.mark.usefixtures("stranger")
def test_database_that_refuses_is_told_of_with_the_way_out(
    conninfo: str, connection: Connection
) -> None:
    make_source(connection, texts(2))
    make_pipeline(connection)
    stranger = make_conninfo(conninfo, user="stranger", password="x")
    read_only = make_conninfo(conninfo, options="-c default_transaction_read_only=on")
    doctor = "pgembed doctor names the rights that this role lacks"
    writable = "default_transaction_read_only is on for this role, database or server"
    for place, way_out, said in (
        (stranger, doctor, "grant usage on schema pgembed to stranger"),
        (read_only, writable, writable),
    ):
        with pytest.raises(PgembedError, match=said):
            Database(place).pipeline("reports").pause()
        with pytest.raises(psycopg.Error) as raised:
            pgembed(place, "pause", "reports")
        assert refused(raised.value).endswith(way_out)


def test_next_step_is_named(empty_conninfo: str) -> None:
    assert "next: pgembed create" in pgembed(empty_conninfo, "migrate").stdout
    assert "next" not in pgembed(empty_conninfo, "migrate").stdout


def test_private_server_is_named_where_nobody_named_a_database(
    conninfo: str, empty_conninfo: str, connection: Connection
) -> None:
    marked = f" fallback_application_name={default.MARK}"
    private = "the private PostgreSQL (no database was named: --dsn, PGEMBED_DSN)"
    assert f"{private} has no schema pgembed yet" in said(
        pgembed(empty_conninfo + marked, "status")
    )
    assert f"no pipeline yet in {private}" in said(pgembed(conninfo + marked, "status"))
    assert f"there is no pipeline 'x' in {private}" in said(
        pgembed(conninfo + marked, "pause", "x")
    )
    told = said(pgembed(conninfo + marked, "create", "x", "--source-table", "reports"))
    assert f"there is no table or view public.reports in {private}" in told
    assert describe_dsn(conninfo + marked).startswith("the private PostgreSQL at app@")
    assert "private" not in said(pgembed(empty_conninfo, "status"))


def test_progress_is_a_line_now_and_then_where_no_terminal_is(
    conninfo: str,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    make_source(connection, texts(5))
    pipeline = make_pipeline(connection)
    enqueue(connection, pipeline, Selection())
    # What has not changed since the line before is left out.
    for seconds, unchanged_seconds, later_lines in ((60.0, 0.0, 1), (0.0, 0.0, 4), (0.0, 60.0, 1)):
        monkeypatch.setattr(lines, "LINE_SECONDS", seconds)
        monkeypatch.setattr(shown_meanwhile, "UNCHANGED_SECONDS", unchanged_seconds)
        how: dict[str, Any] = {"on_quit": lambda: None, "quit_words": "stop"}
        with shown_meanwhile.following(conninfo, "reports", **how) as update:
            said = ""
            while not said:
                update(0.01)
                said = capfd.readouterr().err
            for _ in range(3):
                update(0.0)
        later = capfd.readouterr().err.splitlines()
        assert said == "reports: 0/5 records · 0.0 % · starting\n"
        assert len(later) == later_lines
        assert re.fullmatch(r"reports: 0/5 records · .* · in \d+ s", later[-1])


def test_long_scan_says_how_far_it_is(
    conninfo: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_source(connection, texts(5))
    make_pipeline(connection)
    monkeypatch.setattr(lines, "LINE_SECONDS", 0.0)
    ran = pgembed(conninfo, "enqueue", "reports")
    assert f"scanned 5 of 5 records of {REPORTS}" in ran.stderr


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("datestyle", "German, DMY"),
        ("datestyle", "SQL, MDY"),
        ("intervalstyle", "iso_8601"),
        ("timezone", "Asia/Kathmandu"),
        ("standard_conforming_strings", "off"),
        ("quote_all_identifiers", "on"),
        ("bytea_output", "escape"),
    ],
)
def test_setting_of_a_database_changes_no_answer(
    conninfo: str, connection: Connection, setting: str, value: str
) -> None:
    make_source(connection, texts(3))
    pipeline = make_pipeline(connection)
    enqueue(connection, pipeline, Selection())
    connection.execute(
        sql.SQL("alter database {} set {} = {}").format(
            sql.Identifier(connection.info.dbname), sql.Identifier(setting), sql.Literal(value)
        )
    )
    with open_session(conninfo) as session:
        drain(session, pipeline)
    connection.execute("select pgembed.enqueue('reports', array[1])")
    for command in ("status", "failures reports", "show", "sync reports", "enqueue reports"):
        ran = pgembed(conninfo, *command.split())
        assert (ran.exit_code, ran.error) == (0, None)
    shown = json.loads(pgembed(conninfo, "status", "--json").stdout)
    assert datetime.fromisoformat(shown["pipelines"][0]["last_commit_at"]).utcoffset() is not None
    assert Database(conninfo).pipeline("reports").progress().oldest_pending_at is not None


def test_number_that_no_database_counts_to_is_refused(
    conninfo: str, connection: Connection
) -> None:
    make_source(connection, texts(3))
    make_pipeline(connection)
    for command in ("enqueue reports", "failures reports", "search reports pump"):
        ran = pgembed(conninfo, *command.split(), "--limit", "99999999999999999999")
        assert ran.exit_code == 2
        assert "give at most 9,223,372,036,854,775,807" in said(ran)


def test_source_that_is_gone_is_said_and_its_pipeline_can_be_dropped(
    conninfo: str, connection: Connection
) -> None:
    make_source(connection, texts(3))
    install(connection, make_pipeline(connection))
    connection.execute("drop table public.reports cascade")
    for command in ("sync reports", "sync reports --on", "enqueue reports"):
        ran = pgembed(conninfo, *command.split())
        assert ran.exit_code in (1, 2)
        assert re.search(r"there is no table public.reports|does not exist", said(ran))
    ran = pgembed(conninfo, "drop", "reports", "--yes", "--delete-vectors")
    assert (ran.exit_code, ran.error) == (0, None)
    functions = "select from pg_proc where proname ^@ 'capture_'"
    assert connection.execute(functions).rowcount == 0
