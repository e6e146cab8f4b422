"""The code keeps to the sizes that make it easy to find one's way in."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

import pytest

import pgqueue_embed

PACKAGE = Path(pgqueue_embed.__file__).parent
MIGRATIONS = PACKAGE.parent / "migrations"

MOST_FILES_AT_THE_ROOT = 8
MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60

# A docstring says what a module is or does, in the words one looks for it by.
QUESTION_WORDS = {
    *("How", "That", "What", "Whatever", "When", "Where", "Whether", "Which", "Who", "Whose", "Why")
}

# Those of the Python interface are called like what they stand for.
FACES = {"Pipeline", "Worker"}
FACES_OF_FUNCTIONS = {"search"}


def functions() -> Iterator[tuple[str, int]]:
    """Yield each function of the package, by file and name, and its lines."""
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1
                yield f"{file.relative_to(PACKAGE)}: {node.name}", lines


def test_functions_are_short() -> None:
    lines = dict(functions())
    assert {name for name, count in lines.items() if count > MOST_LINES_OF_A_FUNCTION} == set()
    assert median(lines.values()) <= 10
    assert quantiles(lines.values(), n=10)[-1] <= 30


def test_files_are_short_and_few_lie_at_the_root() -> None:
    files = [*PACKAGE.rglob("*.py"), *MIGRATIONS.glob("*.sql")]
    long = {
        file.name
        for file in files
        if len(file.read_text(encoding="utf-8").splitlines()) > MOST_LINES_OF_A_FILE
    }
    assert long == set()
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_FILES_AT_THE_ROOT


def modules() -> Iterator[Path]:
    """Yield the modules of the package, of its tests and of its benchmarks."""
    for folder in (PACKAGE, PACKAGE.parent / "tests", PACKAGE.parent / "benchmarks"):
        yield from folder.rglob("*.py")


def test_docstrings_of_modules_begin_with_their_subject() -> None:
    docstrings = {
        str(file.relative_to(PACKAGE.parent)): ast.get_docstring(ast.parse(file.read_bytes())) or ""
        for file in modules()
    }
    assert {file for file, says in docstrings.items() if not says} == set()
    first_words = {file: re.split(r"\W", says)[0] for file, says in docstrings.items()}
    assert {file for file, word in first_words.items() if word in QUESTION_WORDS} == set()


def test_no_two_classes_have_one_name() -> None:
    names = Counter(
        node.name
        for file in PACKAGE.rglob("*.py")
        for node in ast.parse(file.read_bytes()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert {name for name, count in names.items() if count > 1} == FACES


def imported_functions() -> Iterator[tuple[str, str]]:
    """Yield (module, name) of what a module of the package imports from another one, if a function.

    Commands are called like what they run.
    """
    trees = {file: ast.parse(file.read_bytes()) for file in PACKAGE.rglob("*.py")}
    of_package = {
        (".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts), node.name)
        for file, tree in trees.items()
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and file.parent != PACKAGE / "cli"
    }
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                yield from {(str(node.module), each.name) for each in node.names} & of_package


def test_no_two_functions_that_are_imported_have_one_name() -> None:
    names = Counter(name for _, name in set(imported_functions()))
    assert {name for name, count in names.items() if count > 1} == FACES_OF_FUNCTIONS


@pytest.mark.parametrize(
    ("behaviour", "file"),
    [
        ("where the retry delay is computed", "queue/retry_delay.py"),
        ("what a lost lease does", "queue/lease.py"),
        ("what `status` prints", "cli/status.py"),
        ("how a trigger is made", "queue/triggers.py"),
        ("where the query vector comes from", "vector_search/query_vector.py"),
    ],
)
def test_newcomers_find_a_behaviour_by_the_name_of_a_file(behaviour: str, file: str) -> None:
    assert (PACKAGE / file).is_file(), behaviour
