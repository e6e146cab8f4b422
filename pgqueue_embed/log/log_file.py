"""A file that several processes log to: it may be moved away, and does not grow for ever."""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TextIO

# Some months of a worker; with the one before, twice as much is kept.
MOST_BYTES = 64 * 1024**2


class LogFile:
    """Appends to `path`, which becomes ``path.1``, in place of an older one, at `most_bytes`.

    A file that logrotate or a person has moved away is left alone, and a new one begun. Raises
    OSError where it cannot be opened, at first.
    """

    def __init__(self, path: Path, *, most_bytes: int = MOST_BYTES) -> None:
        self._path = path
        self._most_bytes = most_bytes
        self._file = _open(path)

    def write(self, text: str) -> None:
        """Append text; what ends with a line is on its way to the disk."""
        self._follow()
        self._file.write(text)

    def flush(self) -> None:
        """Hand over what was written."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def isatty(self) -> bool:
        """Return whether the path is that of a terminal."""
        return self._file.isatty()

    def _follow(self) -> None:
        status = os.fstat(self._file.fileno())
        if not stat.S_ISREG(status.st_mode):
            return  # a terminal, a pipe
        if status.st_size >= self._most_bytes:
            self._move_away()
        if not self._is_ours():
            with suppress(OSError):  # its folder is gone: what is logged goes where it went
                opened = _open(self._path)
                self._file.close()
                self._file = opened

    def _move_away(self) -> None:
        """Rename the file, unless another process did so while this one waited for its turn."""
        with suppress(OSError):
            fcntl.flock(self._file, fcntl.LOCK_EX)
            if self._is_ours():
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))

    def _is_ours(self) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except OSError:
            return False


def _open(path: Path) -> TextIO:
    return path.open("a", encoding="utf-8", buffering=1)
