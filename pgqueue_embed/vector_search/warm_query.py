"""The vector of a query from a `pgembed serve` of this user on this machine, if one runs.

It has the pipeline's own model at hand, so that nothing has to be loaded here; the search itself
stays this session's, with its own rights. A server that was killed leaves a socket behind that
refuses at once. No library is needed: a request is a few lines.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.spec import USE_OPTIONS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VECTOR_PATH = "/query-vector"
VECTOR_FIELDS = ("fingerprint", "use", "truncate_dim", "query")
SUFFIX = ".sock"

# A server that is well answers in some hundredths of a second; by ourselves it takes half a second.
PATIENCE_SECONDS = 0.5
MOST_SERVERS = 4
MOST_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class WarmQuery:
    """The unit vector of a query, shape (dimensions,), and how much of it the model knows not."""

    vector: NDArray[np.float32]
    unknown_share: float


def socket_folder() -> Path:
    """Return the folder in which servers of this user have their sockets; it may not be there."""
    from platformdirs import user_cache_path

    return user_cache_path("pgembed") / "serve"


def ask_for_vector(pipeline: Pipeline, query: str) -> WarmQuery | None:
    """Return the query's vector from a server with the pipeline's model, or None without one.

    It is the same model by the fingerprint of its files, used in the same way.
    """
    asked = {
        "fingerprint": pipeline.model_fingerprint,
        "use": {name: getattr(pipeline.spec, name) for name in USE_OPTIONS},
        "truncate_dim": pipeline.spec.truncate_dim,
        "query": query,
    }
    body = json.dumps(asked).encode()
    for path in _sockets():
        with suppress(OSError, ValueError, KeyError, TypeError):
            answer = json.loads(_post(path, body))
            return _read(answer, pipeline.dimensions)
    return None


def _sockets() -> list[Path]:
    """Return the sockets of this user alone, the newest first."""
    with suppress(OSError):
        folder = socket_folder()
        status = folder.stat()
        if status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o077:
            found = [path for path in folder.iterdir() if path.suffix == SUFFIX]
            return sorted(found, key=_age, reverse=True)[:MOST_SERVERS]
    return []


def _age(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _post(path: Path, body: bytes) -> bytes:
    """Return the body of the answer to a request; raises OSError or ValueError without one."""
    head = (
        f"POST {VECTOR_PATH} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE_SECONDS)
        connection.connect(str(path))
        connection.sendall(head.encode() + body)
        answer = b"".join(_received(connection))
    status, _, rest = answer.partition(b"\r\n")
    if status.split(b" ", 2)[1:2] != [b"200"]:
        raise ValueError("the server has no such model, or too much to do")
    return rest.partition(b"\r\n\r\n")[2]


def _received(connection: socket.socket) -> Iterator[bytes]:
    size = 0
    while part := connection.recv(1 << 16):
        size += len(part)
        if size > MOST_ANSWER_BYTES:
            raise ValueError("the answer is too long")
        yield part


def _read(answer: Any, dimensions: int) -> WarmQuery:
    """Return what an answer holds; raises ValueError for what is no unit vector."""
    import numpy as np

    vector = np.frombuffer(base64.b64decode(answer["vector"]), "<f4").astype(np.float32)
    if vector.shape != (dimensions,) or abs(float(np.linalg.norm(vector)) - 1) > 1e-3:
        raise ValueError("the answer is no vector of the pipeline's")
    return WarmQuery(vector=vector, unknown_share=float(answer["unknown_share"]))
