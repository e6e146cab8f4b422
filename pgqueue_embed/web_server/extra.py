"""The libraries of a server, which not every machine needs."""

from __future__ import annotations

from importlib.util import find_spec

from pgqueue_embed.errors import SetupError

LIBRARIES = ("starlette", "uvicorn", "jinja2", "mcp")


def require_server_extra() -> None:
    """Raise SetupError, with the way out, where the libraries of a server are not installed."""
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise SetupError(
            f"a server needs {', '.join(missing)}, not installed here;"
            " run: pip install 'pgqueue-embed[server]'"
        )
