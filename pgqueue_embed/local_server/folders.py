"""Folders and files of the local server, which only their owner can read or replace."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from pgqueue_embed.local_server.account import Account


def make_parents(path: Path, account: Account | None) -> None:
    """Make the folders above ``path``; passable for ``account`` whatever the umask is."""
    missing = [folder for folder in path.parents if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        if account is not None:
            folder.chmod(0o755)


def make_private_folder(path: Path, account: Account | None) -> None:
    """Make an empty folder, mode 0700, owned by the server's user; an old one is removed."""
    remove_folder(path)
    path.mkdir(mode=0o700)
    if account is not None:
        account.own(path)


def write_private_file(path: Path, text: str, account: Account | None) -> None:
    """Write ``path`` in one step, mode 0600, owned by the server's user.

    The new file replaces the name: root never writes through a link that the server's user made.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if account is not None:
        account.own(Path(temporary))
    Path(temporary).replace(path)


def remove_folder(path: Path) -> None:
    """Remove ``path`` with all in it, if it is there."""
    if path.exists():
        shutil.rmtree(path)


def folder_bytes(path: Path) -> int:
    """Bytes of all files below ``path``; files that vanish meanwhile count as nothing."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118 (ten thousand files)
            except OSError:
                continue
    return total
