"""One process at a time starts or stops a server."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgqueue_embed.errors import LocalServerError


@contextmanager
def exclusive_lock(path: Path, *, wait_seconds: float) -> Iterator[None]:
    """Hold ``path`` locked; the kernel lets go of it when this process dies.

    Raises LocalServerError when another process holds it for ``wait_seconds``.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        _acquire(descriptor, path, wait_seconds)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, path: Path, wait_seconds: float) -> None:
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise LocalServerError(
                    f"another process has been starting or stopping the private server for "
                    f"{wait_seconds:.0f} s (it holds {path}); wait for it or end it"
                ) from None
            time.sleep(0.05)
        else:
            return
