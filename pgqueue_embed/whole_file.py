"""Files that are replaced as a whole: who reads one sees the old content or the new one."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(
    file: Path, *, mode: int = 0o666, user: str | int | None = None
) -> Iterator[BinaryIO]:
    """Yield a new file, which takes the place of `file` at the end of the block.

    It is of `mode` from the start, less what the umask takes, and of `user` if given. Where the
    block raises, or the disk is full, `file` stays as it was and nothing else is left. Raises
    OSError, and LookupError for a user that there is not.
    """
    # Of a name of its own: another process may be at the same.
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}.partial")
    try:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "w+b") as opened:
            yield opened
            opened.flush()
            os.fsync(opened.fileno())
        if user is not None:
            shutil.chown(partial, user)
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
