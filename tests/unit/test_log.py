"""Log lines: their levels, their form, and no secret in any of them."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from pgqueue_embed.errors import UsageError
from pgqueue_embed.log import LogSettings, configure, get_logger, lines, mask
from pgqueue_embed.log.log_file import LogFile

SECRET = "s3cr3t"


@pytest.fixture(autouse=True)
def _default_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    usual = dict(lines._how)
    monkeypatch.setattr(lines, "_how", {**usual})
    yield
    # A process keeps its log file open to the end; a test run would warn about it.
    stream = getattr(lines._how.get("logger"), "_file", None)
    if stream is not None:
        stream.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"host=db password={SECRET} user=me", "host=db password=*** user=me"),
        (f"host=db PASSWORD={SECRET}", "host=db PASSWORD=***"),
        (f"PGPASSWORD={SECRET} pgembed", "PGPASSWORD=*** pgembed"),
        (f"password='two {SECRET}' user=me", "password=*** user=me"),
        (f"password='it\\'s {SECRET}' user=me", "password=*** user=me"),
        (f"password=two\\ {SECRET} user=me", "password=*** user=me"),
        (f"host=db password = {SECRET} user=me", "host=db password = *** user=me"),
        (f"postgresql://me:{SECRET}@db/x", "postgresql://me:***@db/x"),
        (f"postgresql://me:{SECRET}@{SECRET}@db/x", "postgresql://me:***@db/x"),
        (f"postgresql://:{SECRET}@db/x", "postgresql://:***@db/x"),
        (
            f"postgresql://db/x?user=me&password={SECRET}&a=b",
            "postgresql://db/x?user=me&password=***",
        ),
        ("no secret at db:5432/x", "no secret at db:5432/x"),
        ("see http://example.org:80/ or me@example.org",) * 2,
    ],
)
def test_passwords_are_masked(text: str, masked: str) -> None:
    assert mask(text).startswith(masked)
    assert SECRET not in mask(text)


def test_fields_of_any_kind_are_masked(file: Path) -> None:
    configure(file=file, style="json")
    dsn = f"postgresql://me:{SECRET}@db/x"
    get_logger(bound=dsn).info(dsn, text=dsn, error=ValueError(dsn), items=[dsn], values={"a": dsn})
    assert SECRET not in file.read_text()
    line = json.loads(file.read_text())
    assert line["event"] == line["bound"] == "postgresql://me:***@db/x"


def test_numbers_stay_numbers(file: Path) -> None:
    configure(file=file, style="json")
    get_logger().info("batch committed", records=256, seconds=1.5, drained=True, none=None)
    line = json.loads(file.read_text())
    values = [line[name] for name in ("records", "seconds", "drained", "none")]
    assert values == [256, 1.5, True, None]


@pytest.mark.parametrize(
    ("level", "events"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_only_events_of_the_level_and_above_are_written(
    file: Path, level: str, events: list[str]
) -> None:
    configure(level=level, file=file, style="json")
    for name in ("debug", "info", "warning", "error"):
        getattr(get_logger(), name)(name)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["event"] for line in lines] == events
    assert [line["level"] for line in lines] == events


def test_console_line_is_plain_text_in_a_file(file: Path) -> None:
    LogSettings(file=str(file)).apply()
    get_logger(worker=3).info("设备 stopped", reason="no work")
    line = file.read_text(encoding="utf-8")
    assert "设备 stopped" in line
    assert "worker=3" in line
    assert "\x1b" not in line


def test_what_psycopg_logs_is_an_event_of_ours(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(level="debug", file=file, style="json")
    logging.getLogger("psycopg").warning(
        "error ignored in %s: %s", "rollback", f"password={SECRET}"
    )
    line = json.loads(file.read_text())
    assert (line["event"], line["level"]) == ("psycopg", "debug")
    assert line["said"] == "error ignored in rollback: password=***"
    assert capsys.readouterr().err == ""


def test_log_file_is_appended_to(file: Path) -> None:
    file.write_text("kept\n")
    configure(file=file)
    get_logger().info("added")
    assert file.read_text().startswith("kept\n")


@pytest.mark.parametrize("wrong", [{"level": "loud"}, {"style": "xml"}])
def test_unknown_level_or_format_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="choose one of"):
        configure(**wrong)  # type: ignore[arg-type]


def test_log_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write the log file"):
        configure(file=tmp_path / "absent" / "log")


def test_program_of_somebody_else_gets_events_through_the_standard_library(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="pgqueue_embed")
    before = structlog.get_config()
    get_logger(worker=3).info("batch committed 100%s", dsn=f"postgresql://me:{SECRET}@db/x")
    get_logger().debug("not this")
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [
        ("INFO", "batch committed 100%s worker=3 dsn=postgresql://me:***@db/x")
    ]
    assert structlog.get_config() == before


@pytest.mark.parametrize("style", ["console", "json"])
def test_log_repeats_nothing_that_a_terminal_obeys(
    file: Path, style: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest would report it, and cannot send half a character from one of its processes to another.
    monkeypatch.setattr(logging.getLogger("psycopg"), "propagate", False)
    hostile = "\x1b]0;owned\x07\x9b2J\u202e\ud800"
    configure(level="debug", file=file, style=style)
    error = ValueError(hostile)
    get_logger(bound=hostile).error("failed", reason=hostile, exc_info=error, items=[hostile])
    logging.getLogger("psycopg").warning("said %s", hostile)
    line = file.read_text(encoding="utf-8")
    assert "owned" in line
    assert all(each.isprintable() or each == "\n" for each in line)


@pytest.mark.parametrize("level", ["INFO", "Debug", "WARN", "CRITICAL", "error"])
def test_level_may_be_called_as_python_calls_it(file: Path, level: str) -> None:
    LogSettings(level=level, file=str(file)).apply()
    get_logger().error("disk on fire")
    assert "disk on fire" in file.read_text()


def test_times_of_a_json_log_are_utc_with_their_offset(file: Path) -> None:
    LogSettings(style="json", file=str(file)).apply()
    get_logger().info("batch committed")
    (line,) = file.read_text().splitlines()
    assert json.loads(line)["timestamp"].endswith("+00:00")


def test_stream_that_a_program_has_closed_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure()
    stream.close()
    get_logger().warning("nobody hears it")


def write_lines(path: Path, most_bytes: int, count: int) -> None:
    file = LogFile(path, most_bytes=most_bytes)
    for number in range(count):
        file.write(f"{os.getpid()} {number}\n")
    file.close()


def test_full_file_makes_way_and_all_processes_go_on_in_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "work.log"
    most_bytes = 40_000
    writers = [
        multiprocessing.get_context("fork").Process(
            target=write_lines, args=(path, most_bytes, 2_500)
        )
        for _ in range(2)
    ]
    for each in writers:
        each.start()
    for each in writers:
        each.join()

    assert sorted(file.name for file in tmp_path.iterdir()) == ["work.log", "work.log.1"]
    kept = (tmp_path / "work.log.1").read_text().splitlines() + path.read_text().splitlines()
    for writer in writers:
        numbers = [int(line.split()[1]) for line in kept if line.startswith(f"{writer.pid} ")]
        assert numbers == list(range(numbers[0], 2_500)), "of what is kept, none is missing"
    assert most_bytes <= (tmp_path / "work.log.1").stat().st_size < most_bytes + 200


def test_file_that_was_moved_away_is_left_alone(file: Path) -> None:
    LogSettings(file=str(file)).apply()
    get_logger().info("first")
    file.rename(file.with_name("rotated"))
    get_logger().info("second")

    assert "second" in file.read_text()
    assert "second" not in file.with_name("rotated").read_text()


def test_folder_that_is_gone_ends_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    LogSettings(file=str(folder / "work.log")).apply()
    shutil.rmtree(folder)
    get_logger().info("to nobody")
    folder.mkdir()
    get_logger().info("to the new one")

    assert "to the new one" in (folder / "work.log").read_text()
