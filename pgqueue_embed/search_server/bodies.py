"""JSON in and out: what a request may have, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.option import CALLED, check_names
from pgqueue_embed.search_server.service import Search
from pgqueue_embed.untrusted.plain_json import exact_json, json_text
from pgqueue_embed.vector_search.options import request_of

SEARCH_FIELDS = (
    *("pipeline", "query", "limit", "offset", "threshold"),
    *("where", "filter", "columns", "per_record", "mmr", "rerank_top"),
    *("hybrid", "hybrid_weight"),
)


class JsonResponse(Response):
    """A value as `json_text` writes it."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the bytes of `content`."""
        return json_text(content).encode()


def json_object(body: bytes, fields: tuple[str, ...]) -> dict[str, Any]:
    """Return a JSON object that has no more than `fields`; raises UsageError for anything else."""
    try:
        given = json.loads(body, parse_constant=_refuse_constant)
        if b"\\u" in body:  # half of a pair is no text
            json.dumps(given, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise UsageError(f"the request is no JSON: {reason}") from None
    if not isinstance(given, dict):
        raise UsageError('the request is no JSON object, such as {"query": "…"}')
    unknown = [name for name in given if name not in fields]
    if unknown:
        raise UsageError(f"{unknown[0]!r} is none of the fields {', '.join(fields)}")
    if given.get("filter"):  # a number to look for has all its digits
        given["filter"] = exact_json(body)["filter"]
    return given


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def search_of(given: Mapping[str, Any]) -> Search:
    """Return the search that a JSON object asks for; raises UsageError for what is none."""
    asked = {name: value for name, value in given.items() if value is not None}
    columns = asked.get("columns", [])
    check_names("columns", columns)
    asked |= {"columns": tuple(columns)}
    wanted = given.get("filter")
    if wanted is not None and not isinstance(wanted, dict):
        raise UsageError('filter: give an object of columns, such as {"event_type": "D"}')
    query = text_field(given, "query")
    return Search(
        pipeline=text_field(given, "pipeline"),
        query=query,
        request=request_of(query, asked),
        filter=wanted,
    )


def text_field(given: Mapping[str, Any], name: str) -> str:
    """Return a field that has to be there, with text; raises UsageError."""
    value = given.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{name}: give {CALLED[str]}")
    return value
