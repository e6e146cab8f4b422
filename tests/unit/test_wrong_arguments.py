"""Arguments that a command cannot take: one line, with the way out."""

from __future__ import annotations

import shlex

import pytest

from tests.support.commands import pgembed

SAID = {
    "search reports x --limit abc": "--limit 'abc': give a whole number (see pgembed search",
    "search reports x --threshold 0,5": "--threshold '0,5': give a number (see pgembed search",
    "work -c ٣x": "--concurrency '٣x': give a whole number (see pgembed work",
    "search": "missing argument 'name' (see pgembed search",
    "search reports x more": "got unexpected extra argument(s) (more) (see pgembed search",
    "search reports x --limit": "option '--limit' requires an argument (see pgembed search",
    "search reports x --json=1": "option '--json' does not take a value (see pgembed search",
    "search reports x --nope": "no such option: --nope (see pgembed search",
    "serach": "no such command 'serach'. Did you mean 'search', 'service'? (see pgembed",
    "db strat": "no such command 'strat'. Did you mean 'start', 'status'? (see pgembed db",
    "search a b -c 3": "pgembed search has no option -c: it belongs to pgembed",
    "search a b --concurrency 3": "pgembed search has no option --concurrency: it belongs to",
    "--dsn x status": "pgembed has no option --dsn: write it behind the command: pgembed",
    "work --role worker": "pgembed work has no option --role: there are no roles; every machine",
    "db start --port 1": "pgembed db start has no option --port: it belongs to pgembed serve",
}


@pytest.mark.parametrize("line", SAID, ids=str)
def test_wrong_argument_is_said_in_one_line(line: str) -> None:
    ran = pgembed("", *shlex.split(line))
    assert (ran.exit_code, ran.stdout, ran.stderr) == (2, "", "")
    assert ran.error is not None
    assert ran.error.startswith(SAID[line])
    assert ran.error.endswith(" --help)")


def test_no_argument_shows_the_help() -> None:
    ran = pgembed("", "db")
    assert "Usage:" in ran.stdout + ran.stderr
    assert ran.error is None
