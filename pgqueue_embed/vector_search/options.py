"""All options of a search, as a command, a program or a client of the server gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pgqueue_embed.pipeline.option import Option, in_order, options_of
from pgqueue_embed.vector_search.request import ORDER_PANEL, SearchRequest


@dataclass(frozen=True, kw_only=True)
class OrderOptions:
    """What is said with a search and is no field of its request."""

    rerank: Annotated[
        str | None,
        Option(
            help="Order by a cross-encoder, a name or a folder: it reads query and chunk together.",
            panel=ORDER_PANEL,
            behind="per_record",
        ),
    ] = None
    device: Annotated[
        str,
        Option(
            help="Where --rerank computes: auto, mps, cuda or cpu.", panel=ORDER_PANEL, behind="mmr"
        ),
    ] = "auto"
    hybrid: Annotated[
        bool,
        Option(
            help="Find by the query's words, too: model numbers, names, exact terms. It takes an"
            " index of words: pgembed index NAME --lexical.",
            panel=ORDER_PANEL,
            behind="mmr",
        ),
    ] = False


# By their name, in the order of the help.
SEARCH_OPTIONS = {option.name: option for option in in_order(SearchRequest, OrderOptions)}


def request_of(query: str | None, given: Mapping[str, Any]) -> SearchRequest:
    """Return the search for `query` that the options `given` ask for, by their names.

    Raises UsageError for a `hybrid` that is neither True nor False; its `check` does for the rest.
    """
    hybrid = given.get("hybrid", OrderOptions.hybrid)
    SEARCH_OPTIONS["hybrid"].check(hybrid)
    values = {
        option.field: given[option.name]
        for option in options_of(SearchRequest)
        if option.name in given
    }
    return SearchRequest(**values, words=query if hybrid else None)
