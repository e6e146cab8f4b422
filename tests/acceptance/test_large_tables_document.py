"""docs/large-tables.md: several databases, as the document has them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pgqueue_embed import Database, Worker
from pgqueue_embed.db.session import connect
from pgqueue_embed.embedding import resolve_model
from pgqueue_embed.pipeline import model
from tests.acceptance.test_quickstart import load_reports
from tests.support.commands import pgembed
from tests.support.documents import marked_block, text_of
from tests.support.models import make_tiny_model
from tests.support.oracle import assert_converged

DOCUMENT = Path(__file__).parents[2] / "docs" / "large-tables.md"
YEARS = (2024, 2025, 2026)


@pytest.fixture
def databases(
    make_database: Callable[[], Iterator[str]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, str]]:
    """Three databases with some reports each, by the names that the document gives them."""
    with ExitStack() as stack:
        found = {}
        for year in YEARS:
            conninfo = stack.enter_context(contextmanager(make_database)())
            found[f"REPORTS_{year}"] = conninfo
            monkeypatch.setenv(f"REPORTS_{year}", conninfo)
            with connect(conninfo) as connection:
                load_reports(connection, 8)
                # Each year has keys of its own.
                connection.execute(
                    "update public.event_text set mdr_text_key = mdr_text_key * 10000 + %s", (year,)
                )
        yield found


def test_several_databases_are_embedded_and_searched_as_one(
    databases: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = resolve_model(str(make_tiny_model(tmp_path / "tiny", dimensions=384)))
    monkeypatch.setattr(model, "resolve_model", lambda *_, **__: small)
    monkeypatch.chdir(tmp_path)
    (declared,) = re.findall(r"```toml\n(# pgembed\.toml.*?)```", text_of(DOCUMENT), re.DOTALL)
    Path("pgembed.toml").write_text(declared, encoding="utf-8")
    loop, *lines, end = block("several databases", "sh").splitlines()
    assert re.findall(r'"\$(\w+)"', loop) == list(databases)
    assert end == "done"
    for conninfo in databases.values():
        for line in lines:
            run(conninfo, line.strip())
        with connect(conninfo) as connection:
            assert_converged(connection, "reports")
    names: dict[str, Any] = {}
    exec(block("search in several", "python"), names)
    scores = [hit.score for hit in names["best"]]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)
    assert {hit.key_text[-4:] for hit in names["best"]} <= {str(year) for year in YEARS}


def block(name: str, language: str) -> str:
    return marked_block(DOCUMENT, f"{name}: executed by the tests", language)


def run(conninfo: str, line: str) -> None:
    """Run a command of the document in this process, and a worker without its supervisor."""
    program, *arguments, option, database = line.split()
    assert (program, option, database) == ("pgembed", "--dsn", '"$database"')
    if arguments[0] == "work":
        assert arguments == ["work", "--drain"]
        Worker(Database(conninfo), drain=True).run()
        return
    ran = pgembed(conninfo, *arguments)
    assert (ran.exit_code, ran.error) == (0, None), os.linesep.join((line, ran.stderr))
