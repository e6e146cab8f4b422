"""The documents say what is true of the program: links, commands, options, columns, errors."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from pgqueue_embed.cli.app import app
from pgqueue_embed.db.session import Connection
from tests.support.documents import (
    REPOSITORY,
    blocks,
    marked_block,
    prose,
    tables,
    text_of,
)

README = REPOSITORY / "README.md"


CHINESE = REPOSITORY / "README.zh-CN.md"


HOW_IT_WORKS = REPOSITORY / "docs" / "how-it-works.md"


DOCUMENTS = [README, CHINESE, *sorted((REPOSITORY / "docs").glob("*.md"))]


EXAMPLE = re.compile(r"\bexample\b", re.IGNORECASE)


OPTION = re.compile(r"--[a-z][a-z-]*")


THERE = ("there", "那边")  # the heading of a column that is about another program


on_every_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY))
)


# Reading documents


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


@on_every_document
def test_every_file_of_the_project_that_is_named_is_there(document: Path) -> None:
    ours = re.compile(r"(pgqueue_embed|tests|benchmarks|scripts|migrations|monitoring)/")
    named = {span for span in code_spans(document) if ours.match(span)}
    assert {span for span in named if not (README.parent / span).exists()} == set()


def test_every_module_that_is_named_where_it_is_explained_is_there() -> None:
    spans = code_spans(README.parent / "docs" / "how-it-works.md")
    named = {span for span in spans if re.fullmatch(r"[\w/]+\.py", span)}
    modules = {str(file.relative_to(README.parent)) for file in README.parent.rglob("*.py")}
    there = {part for part in named for module in modules if f"/{module}".endswith(f"/{part}")}
    assert named - there == set()


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


def test_every_option_is_named_in_a_document() -> None:
    text = "\n".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    long = {option for option in every_option() if option.startswith("--")}
    assert long - set(OPTION.findall(text)) == set()


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
