"""A hit as JSON, wherever it is shown: on the command line, over HTTP, to an assistant."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Loader
from psycopg.types.json import set_json_loads

from pgqueue_embed.untrusted.plain_json import exact_json, finite
from pgqueue_embed.vector_search.hit import Hit
from pgqueue_embed.vector_search.request import SearchRequest

ALWAYS = ("score", "chunk_index", "start_char", "end_char", "chunk")

# Those of Python end in the years 1 and 9999, and have no infinity.
TIMES = ("date", "time", "timetz", "timestamp", "timestamptz", "interval")


def hit_json(hit: Hit, request: SearchRequest) -> dict[str, Any]:
    """Return the fields of a hit; what was not asked for is left out.

    Values of columns may still be dates, say: `plain_json.json_text` writes them.
    """
    # The key as text: JSON has no dates, and readers of it lose the digits of great numbers.
    values = {"key": hit.key_text, **{name: getattr(hit, name) for name in ALWAYS}}
    if request.columns:
        values["columns"] = finite(hit.columns)
    if request.per_record:
        values["matched"] = hit.matched
    for name in ("rerank_score", "hybrid_score"):
        if (score := getattr(hit, name)) is not None:
            values[name] = score
    return values


def reads_exactly(connection: psycopg.Connection[Any]) -> None:
    """Have whatever columns hold read over `connection`, as JSON can have it.

    Numbers in json and jsonb have all their digits, and a time that Python has not is a text.
    """
    set_json_loads(exact_json, connection)
    for name in TIMES:
        connection.adapters.register_loader(name, _or_text(connection, name))


def _or_text(connection: psycopg.Connection[Any], name: str) -> type[Loader]:
    """Return what reads a type as before, and as PostgreSQL writes it what fails so."""
    oid = connection.adapters.types[name].oid
    usual: Any = connection.adapters.get_loader(oid, psycopg.pq.Format.TEXT)

    class OrText(Loader):
        def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
            super().__init__(oid, context)
            self._usual = usual(oid, context)

        def load(self, data: Buffer) -> Any:
            text = bytes(data).decode()
            if text.endswith("infinity"):  # of an interval, psycopg makes 0
                return text
            try:
                return self._usual.load(data)
            except psycopg.DataError:
                return text

    return OrText
