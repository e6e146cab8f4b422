"""The code keeps to the sizes that make it easy to find one's way in."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

import pgqueue_embed

PACKAGE = Path(pgqueue_embed.__file__).parent
MIGRATIONS = PACKAGE.parent / "migrations"

MOST_FILES_AT_THE_ROOT = 8
MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60


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
