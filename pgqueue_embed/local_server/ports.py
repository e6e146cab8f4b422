"""Loopback ports for the server."""

from __future__ import annotations

import secrets
import socket

from pgqueue_embed.errors import LocalServerError

HOST = "127.0.0.1"
# Below the ephemeral ranges of Linux (from 32768) and macOS (from 49152): no outgoing connection
# of another program takes the remembered port while the server is stopped.
PORTS = range(20_000, 32_000)
TRIES = 200


def is_free(port: int) -> bool:
    """Whether a server may listen on ``port`` of the loopback interface now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As PostgreSQL does: a connection in TIME_WAIT does not make a port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def pick_port() -> int:
    """Return a free port."""
    for _ in range(TRIES):
        port = PORTS[secrets.randbelow(len(PORTS))]
        if is_free(port):
            return port
    raise LocalServerError(
        f"no free port on {HOST} between {PORTS.start} and {PORTS.stop}; "
        "close the programs that hold them, or give --dsn"
    )
