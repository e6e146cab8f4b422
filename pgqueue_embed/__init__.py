"""PostgreSQL-as-queue workers that turn a text column into pgvector rows.

The names below are the Python interface; see docs/python.md. Each is imported when it is first
used, so that ``import pgqueue_embed`` costs nothing.
"""

from importlib import import_module

from pgqueue_embed.version import VERSION

# Type checkers know it by this name. `python -m pgqueue_embed` comes through here while the working
# folder is still searched, so that nothing is imported which Python has not loaded by then.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pgqueue_embed.api.database import Database
    from pgqueue_embed.api.pipeline import Pipeline
    from pgqueue_embed.api.search import search, search_async
    from pgqueue_embed.api.worker import Worker
    from pgqueue_embed.errors import PgembedError
    from pgqueue_embed.monitoring.progress import Progress
    from pgqueue_embed.vector_search.hit import Hit

__version__ = VERSION

__all__ = [
    "Database",
    "Hit",
    "PgembedError",
    "Pipeline",
    "Progress",
    "Worker",
    "__version__",
    "search",
    "search_async",
]

_HOMES = {
    "Database": "api.database",
    "Hit": "vector_search.hit",
    "PgembedError": "errors",
    "Pipeline": "api.pipeline",
    "Progress": "monitoring.progress",
    "Worker": "api.worker",
    "search": "api.search",
    "search_async": "api.search",
}


def __getattr__(name: str) -> "Any":
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
