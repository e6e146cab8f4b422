"""A hit as JSON, wherever it is shown: on the command line, over HTTP, to an assistant."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.types.json import set_json_loads

from pgqueue_embed.untrusted.plain_json import exact_json, finite
from pgqueue_embed.vector_search.hit import Hit
from pgqueue_embed.vector_search.request import SearchRequest

ALWAYS = ("score", "chunk_index", "start_char", "end_char", "chunk")


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
    """Have numbers in columns of json and jsonb read with all their digits over `connection`."""
    set_json_loads(exact_json, connection)
