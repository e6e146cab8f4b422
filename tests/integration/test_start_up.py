"""The modules that commands load before they begin: no array and no tokenizer for a help text."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from pgqueue_embed.cli.app import COMMANDS
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.embedding import fingerprint, resolve_model
from pgqueue_embed.lifecycle.create import check_tables, create_pipeline
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.model_identity import ModelIdentity
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.pipeline.spec_checks import checked
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.corpus import make_source

# Each takes a good part of a second, or of the machine's memory; who only looks logs nothing.
HEAVY = {"numpy", "tokenizers", "torch", "transformers", "sentence_transformers", "structlog"}

# A tenth more than today, those of Python itself, typer, rich and psycopg included, and pydantic's,
# which typer loads where it finds it: the extra server brings it along.
MOST_MODULES = 660

# What takes seconds to import, and what it brings with it.
LIBRARIES = {"transformers", "sentence_transformers", "sklearn", "scipy", "sympy", "pandas"}
COMPILERS = {"torch._dynamo", "torch._inductor"}

PROGRAM = """
import json
import sys
from pgqueue_embed.__main__ import main

for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as end:
        assert not end.code, words
print(*sys.modules, file=sys.stderr)
"""


def loaded_by(*commands: Sequence[str]) -> set[str]:
    """Return the modules that a process has loaded when it has run all these commands."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(ran.stderr.split())
    assert "typer" in loaded
    return loaded


def test_help_loads_nothing_that_computes() -> None:
    loaded = loaded_by(["--help"], ["create", "--help"], ["work", "--help"])
    assert not loaded & HEAVY
    assert len(loaded) < MOST_MODULES, len(loaded)


def test_looking_loads_nothing_that_computes(conninfo: str, connection: Connection) -> None:
    make_searchable(connection, "The battery overheated.")
    loaded = loaded_by(["status", "--dsn", conninfo], ["failures", "reports", "--dsn", conninfo])
    assert "psycopg" in loaded
    assert not loaded & HEAVY
    assert len(loaded) < MOST_MODULES, len(loaded)
    files = {name for name in loaded if name.startswith("pgqueue_embed.cli.")}
    assert {f"pgqueue_embed.cli.{file}" for file in COMMANDS} & files == {
        "pgqueue_embed.cli.status",
        "pgqueue_embed.cli.failures",
    }


def test_search_loads_none_of_the_libraries(conninfo: str, connection: Connection) -> None:
    make_searchable(connection, "The battery overheated.")
    loaded = loaded_by(["search", "reports", "battery", "--threshold", "-1", "--dsn", conninfo])
    assert "numpy" in loaded
    assert not loaded & (LIBRARIES | {"torch", "structlog"})


def test_create_loads_none_of_the_libraries_but_torch(
    conninfo: str, connection: Connection
) -> None:
    make_source(connection, ["The battery overheated."])
    fields = ("--source-table", "reports", "--text-field", "body")
    loaded = loaded_by(["create", "reports", *fields, "--dsn", conninfo])
    assert "torch" in loaded
    assert not loaded & (LIBRARIES | COMPILERS)


# All that a worker process does from its start on, but to keep what it has measured.
WORKER = """
import sys
from pgqueue_embed.worker import models, process
from pgqueue_embed.worker.settings import WorkerSettings
from pgqueue_embed.worker.worker import Worker

models.Memory = lambda: None
Worker(sys.argv[1], WorkerSettings(drain=True)).run()
print(*sys.modules)
"""


def test_worker_loads_none_of_the_libraries_but_torch(
    conninfo: str, connection: Connection
) -> None:
    make_searchable(connection, "The battery overheated.")
    enqueue(connection, load_pipeline(connection, "reports"), Selection())
    command = [sys.executable, "-c", WORKER, conninfo]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert "torch" in loaded
    assert not loaded & (LIBRARIES | COMPILERS)
    states = connection.execute("select state from pgembed.records").fetchall()
    assert states == [("embedded",)]


def make_searchable(connection: Connection, text: str) -> None:
    """Make a pipeline of the bundled model, with one vector."""
    source = make_source(connection, [text])
    spec = checked(
        PipelineSpec(
            name="reports",
            source=source,
            target=Table(schema="public", name="vectors"),
            text_fields=("body",),
        )
    )
    resolved = resolve_model(DEFAULT_MODEL)
    files = fingerprint(resolved.path)
    identity = ModelIdentity(
        name=resolved.name,
        revision=None,
        fingerprint=files.digest,
        files=files.files,
        dimensions=384,
    )
    create_pipeline(connection, spec, check_tables(connection, spec), identity)
    connection.execute(
        "insert into vectors (fulltext_id, chunk_id, chunk_index, text_chunk, start_char, end_char,"
        " tokens, embedding) values (1, 1, 0, %s, 0, 5, 4, array_fill(0.1::real, array[384]))",
        (text,),
    )


ENDING = """
import atexit, os, sys
from pgqueue_embed import __main__
from pgqueue_embed.cli import app

class Late:
    def __del__(self):
        os.write(2, b"taken apart")

def answer():
    atexit.register(print, "cleared away")
    print("done")
    sys.exit(3)

__main__.late = Late()
app.app = answer
__main__.command()
"""


def test_command_ends_before_python_takes_apart_what_threads_stand_on() -> None:
    ran = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, b"done\ncleared away\n", b"")
