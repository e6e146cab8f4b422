"""A hit as JSON, wherever it is shown: on the command line, over HTTP, to an assistant."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pgqueue_embed.untrusted.plain_json import finite
from pgqueue_embed.vector_search.hit import Hit
from pgqueue_embed.vector_search.request import SearchRequest


def hit_json(hit: Hit, request: SearchRequest) -> dict[str, Any]:
    """Return the fields of a hit; what was not asked for is left out.

    Values of columns may still be dates, say: `plain_json.plain` writes them.
    """
    values = asdict(hit)
    # As text: JSON has no dates, and readers of it lose the digits of great numbers.
    values["key"] = values.pop("key_text")
    values["columns"] = finite(values["columns"])
    if not request.columns:
        del values["columns"]
    if not request.per_record:
        del values["matched"]
    for name in ("rerank_score", "hybrid_score"):
        if values[name] is None:
            del values[name]
    return values
