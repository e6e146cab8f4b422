"""No command prints what a terminal would obey, whatever is in names, keys, texts and errors."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import psycopg
import pytest

import pgqueue_embed
from pgqueue_embed.cli.app import COMMANDS as COMMANDS_OF_FILES
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.catalog import pause_pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.commands import Ran, pgembed
from tests.support.pipelines import make_pipeline
from tests.support.working import drain, open_session
from tests.unit.test_foreign_text import is_hostile

# A title, a cleared screen, a C1 sequence, a text that runs backwards, a letter nobody sees.
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b2J\u202etsol\u200b"
# No pipeline is called otherwise than in printable characters.
NAME = "reports"
# What rich writes for its own colours, and what a progress bar moves the cursor by.
COLOURS = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[[12]?[AK]")

# Of so many of the commands below, what they print repeats a hostile text.
HOSTILE_ANSWERS = 27
COMMANDS = (
    "status",
    "serve NAME --host WHERE",
    "mcp WHERE",
    "status --json",
    "status NAME",
    "health",
    "health NAME",
    "metrics",
    "web --host WHERE",
    "estimate NAME",
    "estimate --source-table WHERE",
    "workers",
    "show",
    "show --json",
    "show --toml",
    "show NAME",
    "failures NAME",
    "failures NAME --json",
    "failures NAME --all",
    "failures NAME --same-error-as KEY",
    "retry NAME --key KEY",
    "retry NAME",
    "sync NAME",
    "sync NAME --on",
    "sync NAME --off",
    "enqueue NAME",
    "enqueue NAME --where WHERE",
    "pause NAME",
    "resume NAME",
    "doctor",
    "doctor --json",
    "search NAME query",
    "index NAME",
    "index NAME --drop",
    "evaluate NAME",
    "evaluate NAME --queries WHERE",
    "evaluate NAME --queries WHERE --judgements WHERE",
    "alter NAME --rename NAME2",
    "alter NAME --priority 3",
    "alter NAME --where WHERE",
    "alter NAME --switch",
    "alter NAME --abort",
    "create NAME2 --source-table WHERE",
    "create NAME2 --source-table reports --text-field WHERE",
    "create NAME2 --source-table reports --model WHERE",
    "create NAME2 --source-table reports --template WHERE",
    "adopt NAME2 --source-table WHERE --dry-run",
    "run NAME --source-table WHERE",
    "search NAME WHERE --where WHERE",
    "search NAME WHERE --columns WHERE",
    "verify NAME",
    "verify NAME2",
    "work --pipeline NAME2 --drain",
    "work --log-level WHERE",
    "work --drain --otlp WHERE",
    "bench --model WHERE",
    "bench --device WHERE --seconds 1",
    "status --file WHERE",
    "apply --file WHERE",
    "drop NAME2 --yes",
    "drop NAME",
    "WHERE",
    "status --WHERE",
)


@pytest.fixture
def world(conninfo: str, connection: Connection) -> None:
    """A pipeline of hostile texts, with a dead letter, a worker and a reason to be paused."""
    columns = psycopg.sql.SQL("create table {} (id text primary key, {} text, {} text)").format(
        *(psycopg.sql.Identifier(f"{word}{HOSTILE}") for word in ("source", "body", "title"))
    )
    connection.execute(columns)
    source = Table(schema="public", name=f"source{HOSTILE}")
    insert = psycopg.sql.SQL("insert into {} values (%s, %s, %s)").format(source.identifier)
    connection.execute(insert, (f"key{HOSTILE}", f"Pump {HOSTILE} stopped.", HOSTILE))
    connection.execute(insert, ("dead", f"POISON {HOSTILE}", HOSTILE))
    pipeline = make_pipeline(
        connection,
        source,
        target=Table(schema="public", name=f"target{HOSTILE}"),
        name=NAME,
        text_field=f"body{HOSTILE}",
        max_attempts=1,
    )
    enqueue(connection, pipeline, Selection())
    with open_session(conninfo) as session:
        drain(session, pipeline)
    connection.execute(
        "insert into pgembed.workers (host, pid, device, precision, version, concurrency, model,"
        " stop_reason, state, pipeline_ids)"
        " values (%(t)s, 1, %(t)s, %(t)s, %(t)s, 1, %(t)s, %(t)s, 'stopped', '{}')",
        {"t": HOSTILE},
    )
    connection.execute(
        "update pgembed.records set last_error = %s where state = 'dead'", (HOSTILE,)
    )
    pause_pipeline(connection, pipeline, HOSTILE)
    connection.execute("update pgembed.pipelines set state_reason = %s", (HOSTILE,))


def words(command: str) -> list[str]:
    given = {"NAME": NAME, "NAME2": f"other{HOSTILE}", "WHERE": f"a{HOSTILE}b", "KEY": HOSTILE}
    return [
        given.get(word, f"--a{HOSTILE}" if word == "--WHERE" else word)
        for word in shlex.split(command)
    ]


def unfit(text: str) -> list[str]:
    return [each for each in COLOURS.sub("", text) if is_hostile(each) and each not in "\n\t\r"]


@pytest.mark.timeout(900)  # forty commands, some with the model's libraries
@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("colour", [False, True], ids=["pipe", "terminal"])
def test_no_command_prints_what_a_terminal_obeys(
    conninfo: str, monkeypatch: pytest.MonkeyPatch, colour: bool
) -> None:
    if colour:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
    said = []
    for command in COMMANDS:
        ran = run(conninfo, command)
        printed = ran.stdout + ran.stderr + (ran.error or "")
        assert printed, command
        said.append(printed)
        assert unfit(printed) == [], command
    assert sum("owned" in printed for printed in said) >= HOSTILE_ANSWERS


def run(conninfo: str, command: str) -> Ran:
    return pgembed(conninfo, *words(command), answer="n\n")


def test_every_command_is_tried() -> None:
    names = {name for names in COMMANDS_OF_FILES.values() for name in names}
    # They show nothing of the tables of others, or have a table and a pipeline of their own.
    without_texts = {"demo", "migrate", "db", "model", "service"}
    assert names - without_texts <= {command.split()[0] for command in COMMANDS}


def test_commands_print_by_what_makes_texts_printable() -> None:
    folder = Path(pgqueue_embed.__file__).parent
    raw = re.compile(r"typer\.(?:echo|secho|confirm|prompt)\(|\bConsole\(")
    for path in folder.rglob("*.py"):
        found = raw.search(path.read_text(encoding="utf-8"))
        assert found is None or path.name in ("display.py", "terminal.py"), (path, found)
