"""Chooses the account that runs the server: PostgreSQL refuses to run as root."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from pgqueue_embed.errors import LocalServerError

# An account of its own where there is one; `nobody` is shared by all that want no rights.
OWN_USER = "pgembed"
SHARED_USER = "nobody"


@dataclass(frozen=True)
class Account:
    """An unprivileged user that root hands the server to."""

    name: str
    uid: int
    gid: int

    def can_reach(self, path: Path) -> bool:
        """Whether every folder above ``path`` lets this user pass.

        Folders that do not exist yet are made by us, and passable.
        """
        return all(self._may_pass(folder) for folder in path.resolve().parents if folder.exists())

    def own(self, path: Path) -> None:
        """Give ``path`` to this user; a link is never followed."""
        os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def _may_pass(self, folder: Path) -> bool:
        found = folder.stat()
        if found.st_uid == self.uid:
            return bool(found.st_mode & 0o100)
        return bool(found.st_mode & (0o010 if found.st_gid == self.gid else 0o001))


def running_as_root() -> bool:
    """Whether this process has to hand the server to another account."""
    return os.geteuid() == 0


def server_account(data_folder: Path) -> Account | None:
    """Return the user that runs the server, or None when it is the present user.

    Root hands the server to the owner of the data folder; a new one to ``pgembed``, if there is
    such a user, or else to ``nobody``.
    """
    if not running_as_root():
        return None
    owner = data_folder.stat().st_uid if data_folder.exists() else 0
    try:
        entry = pwd.getpwuid(owner) if owner else _unprivileged()
    except KeyError:
        raise LocalServerError(
            f"root may not run PostgreSQL and this machine has no user {owner or 'nobody'} to run "
            "it; start pgembed as a plain user, or give --dsn"
        ) from None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _unprivileged() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(OWN_USER)
    except KeyError:
        return pwd.getpwnam(SHARED_USER)


def shared_account(data_folder: Path) -> str | None:
    """Return the user that runs the server if other programs of this machine run as it, too."""
    account = server_account(data_folder)
    return SHARED_USER if account is not None and account.name == SHARED_USER else None


def require_reachable(account: Account | None, data_folder: Path) -> None:
    """Raise unless ``account`` can get at the data folder."""
    if account is None or account.can_reach(data_folder):
        return
    raise LocalServerError(
        f"root may not run PostgreSQL, and user {account.name}, who runs it instead, cannot reach "
        f"{data_folder}; set PGEMBED_HOME to a folder below which everybody may pass"
    )
