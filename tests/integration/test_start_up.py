"""What commands load before they begin: a help text or a status takes no array and no tokenizer."""

from __future__ import annotations

import subprocess
import sys

# Each takes a good part of a second, or of the machine's memory.
HEAVY = {"numpy", "tokenizers", "torch", "transformers", "sentence_transformers"}

# A tenth more than today, those of Python itself, typer, rich and psycopg included.
MOST_MODULES = 660

PROGRAM = """
import sys
from pgqueue_embed.__main__ import main

try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


def loaded_by(*words: str) -> set[str]:
    """Return the modules that the command has loaded when it ends."""
    command = [sys.executable, "-c", PROGRAM, *words]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(ran.stderr.split())
    assert "typer" in loaded
    return loaded


def test_help_loads_nothing_that_computes() -> None:
    for words in (("--help",), ("create", "--help"), ("work", "--help")):
        loaded = loaded_by(*words)
        assert not loaded & HEAVY
        assert len(loaded) < MOST_MODULES, len(loaded)


def test_status_loads_nothing_that_computes(conninfo: str) -> None:
    loaded = loaded_by("status", "--dsn", conninfo)
    assert "psycopg" in loaded
    assert not loaded & HEAVY
    assert len(loaded) < MOST_MODULES, len(loaded)
