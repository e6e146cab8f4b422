"""A server with pg_textsearch, of packages that npm installs beside the environment's own.

It is PostgreSQL as WebAssembly, with one process for all sessions: what a session sets, each has.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from pgqueue_embed.db.migrate import migrations_folder
from tests.support.programs import needs

SCRIPT = Path(__file__).with_suffix(".mjs")
FOLDER = Path(sys.prefix) / "pg_textsearch"
LEAST_NODE = 18
PACKAGE = FOLDER / "node_modules" / "@electric-sql" / "pglite-pg_textsearch"


def has_textsearch() -> bool:
    """Return whether the server can be started."""
    return PACKAGE.is_dir() and _node_version() >= LEAST_NODE


def _node_version() -> int:
    """Return the major version of Node.js, 0 if there is none."""
    if shutil.which("node") is None:
        return 0
    told = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False)
    found = re.match(r"v(\d+)\.", told.stdout)
    return int(found[1]) if found else 0


def needs_textsearch() -> pytest.MarkDecorator:
    """Return the mark of tests that are left out where the server cannot be started."""
    return needs("pg_textsearch", has_textsearch())


@contextmanager
def textsearch_server() -> Iterator[str]:
    """Run a server and return the connection string of its only database, which is migrated."""
    with _running() as conninfo:
        # Where all sessions are one, `migrate` would wait for the lock that it holds itself.
        with psycopg.connect(conninfo, autocommit=True) as administrator:
            administrator.execute("create extension vector; create schema pgembed")
            for file in sorted(migrations_folder().glob("*.sql")):
                administrator.execute(file.read_bytes())
        yield conninfo


@contextmanager
def _running() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="pgembed-") as folder:
        command = ["node", "--input-type=module", "--eval", SCRIPT.read_text(), "--"]
        with subprocess.Popen(
            [*command, f"{folder}/.s.PGSQL.5432"],
            cwd=FOLDER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as server:
            assert server.stdin is not None
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            yield f"host={folder} user=postgres dbname=postgres sslmode=disable"
            server.stdin.close()
