"""Making a data folder with initdb, and telling whose it is."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

from pgqueue_embed.errors import LocalServerError
from pgqueue_embed.local_server.client import USER
from pgqueue_embed.local_server.config import config_text
from pgqueue_embed.local_server.folders import (
    make_private_folder,
    remove_folder,
    write_private_file,
)
from pgqueue_embed.local_server.layout import ServerLayout
from pgqueue_embed.local_server.ports import pick_port
from pgqueue_embed.local_server.programs import Programs, last_line
from pgqueue_embed.local_server.serverlog import last_fault

INITDB_SECONDS = 300
PASSWORD_BYTES = 24


def data_version(layout: ServerLayout) -> str | None:
    """Return the major version that made the data folder, or None when there is none."""
    if not layout.version_file.exists():
        return None
    return layout.read(layout.version_file)


def require_version(layout: ServerLayout, major_version: int) -> None:
    """Raise when the data folder is of another major version, or not PostgreSQL's at all."""
    made_by = data_version(layout)
    if made_by is None and layout.data.exists() and any(layout.data.iterdir()):
        raise LocalServerError(
            f"{layout.data} is not empty and holds no PostgreSQL data; "
            "set PGEMBED_HOME to another folder"
        )
    if made_by is not None and made_by != str(major_version):
        raise LocalServerError(
            f"the data in {layout.data} was made by PostgreSQL {made_by} and this is PostgreSQL "
            f"{major_version}; set PGEMBED_HOME to another folder, or move the old data away"
        )


def create_cluster(
    layout: ServerLayout, programs: Programs, major_version: int, extra_settings: Mapping[str, str]
) -> None:
    """Make the data folder, complete or not at all."""
    make_private_folder(layout.staging, programs.account)
    staged = ServerLayout(layout.staging / "data")
    password = secrets.token_urlsafe(PASSWORD_BYTES)
    password_file = layout.staging / "password"
    write_private_file(password_file, password, programs.account)
    _initdb(programs, staged.data, password_file, major_version, extra_settings)
    write_private_file(staged.password_file, password, programs.account)
    write_private_file(
        staged.config_file, config_text(pick_port(), extra_settings), programs.account
    )
    _include_our_settings(staged.data / "postgresql.conf", staged.config_file.name, programs)
    staged.data.rename(layout.data)
    remove_folder(layout.staging)


def _initdb(
    programs: Programs,
    data: Path,
    password_file: Path,
    major_version: int,
    extra_settings: Mapping[str, str],
) -> None:
    done = programs.run(
        "initdb",
        *("-D", data, "-U", USER, "--pwfile", password_file),
        *("--auth-local=scram-sha-256", "--auth-host=scram-sha-256"),
        *("--encoding=UTF8", "--data-checksums", *_locale(major_version)),
        *(["--no-sync"] if extra_settings.get("fsync") == "off" else []),
        timeout_seconds=INITDB_SECONDS,
    )
    if done.returncode != 0:
        # Behind its reason it says what it has cleared away.
        reason = last_fault(done.stderr) or last_line(done.stderr)
        raise LocalServerError(
            f"cannot make the private server's data folder {data.parent}: initdb says "
            f"'{reason}'; mend that, or set PGEMBED_HOME to another folder"
        )


def _locale(major_version: int) -> list[str]:
    # The C library of macOS may not know C.UTF-8: only PostgreSQL's own provider is asked for it.
    if major_version >= 17:
        return ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    return ["--locale=C"]


def _include_our_settings(config: Path, name: str, programs: Programs) -> None:
    text = config.read_text(encoding="utf-8")
    write_private_file(config, f"{text}\ninclude = '{name}'\n", programs.account)
