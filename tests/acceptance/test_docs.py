"""The documents say what is true of the program: links, commands, options, columns, errors."""

from __future__ import annotations

import plistlib
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import psycopg
import pytest
import typer
from psycopg.conninfo import make_conninfo

from pgqueue_embed.cli.app import app
from pgqueue_embed.db.migrate import check_schema
from pgqueue_embed.db.names import Table
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
from tests.support.corpus import make_source, texts
from tests.support.documents import marked_block, text_of
from tests.support.fakes import POISON
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.working import drain, open_session

REPOSITORY = Path(__file__).parents[2]
README = REPOSITORY / "README.md"
CHINESE = REPOSITORY / "README.zh-CN.md"
HOW_IT_WORKS = REPOSITORY / "docs" / "how-it-works.md"
OPERATIONS = REPOSITORY / "docs" / "operations.md"
MAUDE = REPOSITORY / "docs" / "maude.md"
DOCUMENTS = [README, CHINESE, *sorted((REPOSITORY / "docs").glob("*.md"))]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
EXAMPLE = re.compile(r"\bexample\b", re.IGNORECASE)
OPTION = re.compile(r"--[a-z][a-z-]*")
THERE = ("there", "那边")  # the heading of a column that is about another program

on_every_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY))
)


# Reading documents


def prose(document: Path) -> str:
    """Return a document without its code blocks."""
    return FENCE.sub("", text_of(document))


def blocks(document: Path, language: str | None = None) -> list[str]:
    """Return the code blocks of a document, or those of one language."""
    found = FENCE.findall(text_of(document))
    return [block for name, block in found if language is None or name == language]


def tables(document: Path) -> Iterator[list[list[str]]]:
    """Yield each table as rows of cells, its header first."""
    for found in re.findall(r"(?:^\|.*\|\n)+", prose(document), re.MULTILINE):
        rows = [
            [cell.strip() for cell in line.strip().strip("|").split("|")]
            for line in found.splitlines()
        ]
        yield [row for row in rows if not re.fullmatch(r"[-: ]*", "".join(row))]


def code_spans(document: Path) -> list[str]:
    """Return inline code, without the column that names options of another program."""
    others = {row[0] for table in tables(document) if table[0][0] in THERE for row in table}
    lines = [line for line in prose(document).splitlines() if line.split("|")[1:2] != [""]]
    kept = [line for line in lines if line.strip("| ").split(" | ")[0] not in others]
    return re.findall(r"`([^`\n]+)`", "\n".join(kept))


def commands_in(document: Path) -> list[str]:
    """Return what a document has people type: shell code, service files, inline commands."""
    typed = [re.sub(r"^.*run: ", "", span) for span in code_spans(document)]
    inline = [span for span in typed if span.startswith("pgembed ")]
    return [*inline, *(each for kind in ("sh", "xml", "ini") for each in blocks(document, kind))]


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ +(.+)$", prose(document), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-")
        for heading in headings
    }


# Reading the command line


@cache
def root() -> Any:
    """Return the command `pgembed` itself, which typer makes anew each time."""
    return typer.main.get_command(app)


@cache
def commands() -> dict[tuple[str, ...], Any]:
    """Return every command of the command line by its words, without the groups."""
    return dict(_walk((), root()))


def _walk(path: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    # Not isinstance: typer may bring a click of its own along.
    children: dict[str, Any] = getattr(command, "commands", {})
    if not children:
        yield path, command
    for name, child in children.items():
        yield from _walk((*path, name), child)


def options_of(command: Any) -> dict[str, Any]:
    """Return a command's options by every spelling."""
    found = {
        spelling: option
        for option in command.params
        if option.param_type_name == "option"
        for spelling in (*option.opts, *option.secondary_opts)
    }
    return {**found, "--help": None, "-h": None}


def every_option() -> set[str]:
    every = [root(), *commands().values()]
    return {name for command in every for name in options_of(command)}


def calls(code: str) -> Iterator[list[str]]:
    """Yield the words that follow each ``pgembed`` in shell code or inline code."""
    for line in code.replace("\\\n", " ").splitlines():
        for found in re.finditer(r"(?<![\w.'-])pgembed\"?((?: +[^|;&#()`]+)?)", line):
            yield _words(found[1])


def _words(rest: str) -> list[str]:
    try:
        return shlex.split(rest)
    except ValueError:  # a quote that goes on in the next line
        return rest.replace('"', "").split()


def problem_of(words: list[str]) -> str | None:
    """Return what is wrong with ``pgembed words``, or None."""
    while words and words[0].startswith("-"):
        option, *words = words
        if option.partition("=")[0] not in options_of(root()):
            return f"pgembed has no option {option}"
    path = next((path for path in commands() if tuple(words[: len(path)]) == path), None)
    if path is None:
        groups = {path[:1] for path in commands() if len(path) > 1}
        known = not words or tuple(words) in groups
        return None if known else f"there is no command pgembed {words[0]}"
    known_options = options_of(commands()[path])
    given = [word.partition("=")[0] for word in words[len(path) :] if word.startswith("-")]
    unknown = [option for option in given if option not in known_options]
    return f"pgembed {' '.join(path)} has no option {unknown[0]}" if unknown else None


# Links


def links(document: Path) -> list[str]:
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(document))
    return [target for target in targets if not target.startswith(("http://", "https://"))]


@on_every_document
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    for target in links(document):
        name, _, anchor = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        assert file.exists(), f"{document.name} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(file), f"{document.name}: no heading for {target}"


def test_readme_links_to_every_document() -> None:
    linked = {(README.parent / target.partition("#")[0]).resolve() for target in links(README)}
    assert linked >= set(DOCUMENTS) - {README}


# Commands and options


@on_every_document
def test_every_command_line_in_a_document_exists(document: Path) -> None:
    wrong = [
        f"{' '.join(words)}: {problem}"
        for code in commands_in(document)
        for words in calls(code)
        if (problem := problem_of(words))
    ]
    assert wrong == []


@on_every_document
def test_every_option_in_inline_code_exists(document: Path) -> None:
    spans = [span for span in code_spans(document) if span.startswith("--")]
    named = {option for span in spans for option in OPTION.findall(span)}
    assert named - every_option() == set()


def option_tables() -> Iterator[tuple[list[str], list[str], str]]:
    """Yield (commands, options, cell of defaults) for each row of README's option tables."""
    for header, *rows in tables(README):
        if header[0].startswith("option of"):
            for row in rows:
                yield re.findall(r"`(.+?)`", header[0]), OPTION.findall(row[0]), row[1]


def test_options_in_the_tables_of_the_readme_belong_to_their_commands() -> None:
    rows = list(option_tables())
    assert rows
    for names, options, _ in rows:
        for name in names:
            assert set(options) <= set(options_of(commands()[(name,)])), f"{options} of {name}"


def test_numbers_in_the_tables_of_the_readme_are_the_defaults() -> None:
    compared = 0
    for (name, *_), options, cell in option_tables():
        stated = [part.strip() for part in cell.split(",")]
        if len(stated) != len(options):
            continue
        for option, value in zip(options, stated, strict=True):
            if value.isdigit():
                default = options_of(commands()[(name,)])[option].default
                assert float(value) == float(default), f"{option} defaults to {default}"
                compared += 1
    assert compared > 5


def test_every_command_is_named_in_the_readme() -> None:
    code = " ".join([*code_spans(README), *blocks(README)])
    words = set(re.findall(r"[\w-]+", code))
    assert {word for path in commands() for word in path} - words == set()


def test_every_command_explains_itself_with_an_example() -> None:
    for path, command in commands().items():
        assert command.help, f"pgembed {' '.join(path)} has no help"
        example = EXAMPLE.search(command.help)
        assert example, f"the help of pgembed {' '.join(path)} has no example"
        (words, *_) = calls(command.help[example.start() :])
        assert tuple(words[: len(path)]) == path
        assert problem_of(words) is None, problem_of(words)


def test_every_option_has_help() -> None:
    for path, command in {**commands(), (): root()}.items():
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{path}: {parameter.name} has no help"


# The two READMEs


def test_readme_is_short_enough_to_be_read() -> None:
    assert len(text_of(README).splitlines()) < 250


def test_both_readmes_have_the_same_quickstart() -> None:
    mark = "quickstart: executed by the tests"
    assert marked_block(README, mark, "sh") == marked_block(CHINESE, mark, "sh")


def test_chinese_readme_has_the_code_of_the_english_one() -> None:
    assert blocks(CHINESE) == blocks(README)


def test_both_readmes_have_the_same_tables_options_commands_and_links() -> None:
    assert [len(table) for table in tables(CHINESE)] == [len(table) for table in tables(README)]
    assert _said(README) - _said(CHINESE) == set()
    assert set(links(README)) - {CHINESE.name} == set(links(CHINESE)) - {README.name}


def _said(document: Path) -> set[str]:
    """Return the options, commands, models and columns that a document names in prose."""
    return set(re.findall(r"`([^`\n]+)`", prose(document)))


# What the documents must not say


RATE = re.compile(
    r"\d[\d,.]* *k? *(?:chunks?|tokens?|records?|vectors?|rows?|documents?|texts?)"
    r" *(?:/|per |a |each )s|\d[\d,.]* *(?:条|块|个|token) */ *秒|每秒 *\d",
    re.IGNORECASE,
)
MAC = re.compile(r"\b(?:Mac|MacBook|Apple|MPS|Metal|M[1-9](?: Pro| Max| Ultra)?)\b")


@on_every_document
def test_no_figure_is_given_for_a_mac(document: Path) -> None:
    paragraphs = re.split(r"\n\s*\n|\n(?=\|)", text_of(document))
    guilty = [each for each in paragraphs if MAC.search(each) and RATE.search(each)]
    assert guilty == []
    assert not re.search(r"\bM[1-9] (?:Pro|Max|Ultra)\b", text_of(document))


@on_every_document
def test_documents_do_not_name_this_machine(document: Path) -> None:
    text = text_of(document)
    assert str(REPOSITORY) not in text
    assert "../shared" not in text


# How it works


@pytest.mark.parametrize(("kind", "letter"), [("table", "r"), ("view", "v")])
def test_every_table_and_view_is_documented(connection: Connection, kind: str, letter: str) -> None:
    rows = connection.execute(
        "select relname from pg_class where relnamespace = 'pgembed'::regnamespace"
        " and relkind = %s and relname !~ 'yoyo'",
        (letter,),
    )
    (table,) = [table for table in tables(HOW_IT_WORKS) if table[0][0] == kind]
    assert sorted(name for (name,) in rows) == sorted(row[0].strip("`") for row in table[1:])


# Operations


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


def event_pipeline(connection: Connection, documents: list[str | None]) -> Pipeline:
    """Make the tables and the pipeline that the documents use as their example."""
    source = make_source(
        connection,
        documents,
        table="event_text",
        id_field="mdr_text_key",
        text_field="foi_text",
    )
    return make_pipeline(
        connection,
        source,
        target=Table(schema="public", name="event_text_vectors"),
        id_field="mdr_text_key",
        text_field="foi_text",
    )


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
