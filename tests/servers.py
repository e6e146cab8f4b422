"""PostgreSQL servers for tests, from the same wheel that users get."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from pgqueue_embed.local_server import LocalServer
from pgqueue_embed.local_server.account import server_account

# Nobody keeps a test's data: a power cut may take it. A killed server may not, since tests do
# kill it: synchronous_commit stays on, and without fsync it costs nothing.
FAST_SETTINGS: Mapping[str, str] = {
    "fsync": "off",
    "full_page_writes": "off",
    # Each process of the server maps these pages, and each DROP DATABASE looks through them.
    "shared_buffers": "16MB",
    "update_process_title": "off",
    "maintenance_work_mem": "64MB",
    "max_wal_size": "1GB",
}


def make_server_folder() -> Path:
    """Make an empty folder that the server's user can pass through; the caller removes it.

    pytest's tmp_path will not do: it is closed to others, and root's server runs as nobody.
    """
    folder = Path(tempfile.mkdtemp(prefix="pgembed-test-", dir=_base_folder()))
    if os.geteuid() == 0:
        folder.chmod(0o755)
    return folder


@contextmanager
def temporary_server(
    major_version: int = 18, extra_settings: Mapping[str, str] | None = None
) -> Iterator[LocalServer]:
    """Run a server of its own, without durability, and delete it at the end."""
    folder = make_server_folder()
    settings = {**FAST_SETTINGS, **(extra_settings or {})}
    server = LocalServer(
        folder / "postgresql", major_version=major_version, extra_settings=settings
    )
    try:
        server.start()
        _make_passwords_quick(server)
        yield server
    finally:
        server.destroy()
        shutil.rmtree(folder)


def _make_passwords_quick(server: LocalServer) -> None:
    """Spare every connection the 4,096 rounds of hashing that slow down who guesses a password.

    They take longer than all else that a client does to connect, and tests connect very often.
    """
    with psycopg.connect(server.conninfo(), autocommit=True) as administrator:
        administrator.execute("set scram_iterations = 1")
        administrator.execute(
            sql.SQL("alter role current_user password {}").format(administrator.info.password)
        )


def _base_folder() -> Path:
    usual = Path(tempfile.gettempdir())
    account = server_account(usual / "absent")
    return usual if account is None or account.can_reach(usual / "absent") else Path("/tmp")
