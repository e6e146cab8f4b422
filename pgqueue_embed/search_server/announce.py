"""The socket by which `pgembed search` of the same user finds a server."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pgqueue_embed.errors import SetupError
from pgqueue_embed.log import get_logger
from pgqueue_embed.vector_search.warm_query import PATIENCE_SECONDS, SUFFIX, socket_folder
from pgqueue_embed.web_server.listening import open_private_socket


@contextmanager
def announced() -> Iterator[list[socket.socket]]:
    """Give the socket of this process, which is gone after the block; none where none can be."""
    folder = socket_folder()
    _remove_dead(folder)
    path = folder / f"{os.getpid()}{SUFFIX}"
    try:
        opened = [open_private_socket(path)]
    except SetupError as error:
        get_logger().warning("searches of this machine will not find it", reason=str(error))
        opened = []
    try:
        yield opened
    finally:
        for each in opened:
            each.close()
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _remove_dead(folder: Path) -> None:
    """Remove the sockets of servers that were killed."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.suffix == SUFFIX and not _answers(path):
                path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE_SECONDS)
        try:
            connection.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True
