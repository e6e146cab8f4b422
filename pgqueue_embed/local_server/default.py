"""The server of a user who names no database."""

from __future__ import annotations

import os
from pathlib import Path

from pgqueue_embed.errors import UsageError
from pgqueue_embed.local_server.account import running_as_root, server_account
from pgqueue_embed.local_server.server import LocalServer

# What libpq would call a session that has no name; ours have. See db.dsn.
MARK = "pgembed-private"
HOME_VARIABLE = "PGEMBED_HOME"
ROOT_HOME = Path("/var/lib/pgembed")
DATA_NAME = "postgresql"


def default_server() -> LocalServer:
    """Return the server in folder ``postgresql`` of pgembed's home.

    Home is PGEMBED_HOME, or else the user's data folder: ``~/.local/share/pgembed`` on Linux,
    ``~/Library/Application Support/pgembed`` on macOS. PostgreSQL refuses to run as root, so root
    hands the server to ``nobody``, who cannot pass through ``/root``: there home is
    ``/var/lib/pgembed``.
    """
    return LocalServer(default_home() / DATA_NAME)


def default_home() -> Path:
    """Return pgembed's home, which need not exist; raises UsageError for a user who has none."""
    named = os.environ.get(HOME_VARIABLE)
    if named:
        return Path(named)
    from platformdirs import user_data_path

    try:
        home = user_data_path("pgembed", appauthor=False)
    except RuntimeError:
        raise UsageError(
            "this user has no home, where pgembed would keep a private database and imported"
            f" models: set HOME, or {HOME_VARIABLE} to a folder"
        ) from None
    return home if _is_usable(home / DATA_NAME) else ROOT_HOME


def ensure_running(*, may_make: bool = True) -> str:
    """Start the default server if needed and return its connection string, with the password.

    The string says whose it is, for messages: no option has named this database.
    Raises UsageError where there is none yet and none `may_make` be made: what a person wants to
    look at is somewhere else then.
    """
    server = default_server()
    if not may_make and not server.is_made():
        raise UsageError(
            "no database was named (--dsn, PGEMBED_DSN, PGHOST or pgembed.toml), and there is no"
            " private one; name yours, or make a private one: pgembed db start"
        )
    server.start()
    return f"{server.conninfo()} fallback_application_name={MARK}"


def _is_usable(data_folder: Path) -> bool:
    if not running_as_root():
        return True
    account = server_account(data_folder)
    return account is None or account.can_reach(data_folder)
