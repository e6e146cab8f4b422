"""The command that searches: search."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgqueue_embed.cli.display import console, one_line, print_json, say
from pgqueue_embed.cli.options import connected
from pgqueue_embed.cli.pipeline_options import ModelPath, PipelineName
from pgqueue_embed.cli.search_options import WantedSearch
from pgqueue_embed.quantities import percent
from pgqueue_embed.untrusted.plain_json import json_text
from pgqueue_embed.vector_search.request import LEAST_COSINE, SearchRequest, no_vectors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pgqueue_embed.db.session import Connection
    from pgqueue_embed.pipeline.pipeline import Pipeline
    from pgqueue_embed.vector_search.hit import Hit

# Longer lines are hard to read, however wide the terminal is.
MAX_WIDTH = 100
INDENT = 7

# Beyond this share of unknown tokens a query means little to its model.
WORRYING_SHARE = 0.2


Query = Annotated[str, typer.Argument(help="What to look for, in words.", show_default=False)]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print JSON: key, score, chunk_index, start_char, end_char, verbatim chunk.",
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(search))


def search(
    conninfo: str,
    name: PipelineName,
    query: Query,
    wanted: WantedSearch,
    as_json: AsJson = False,
    model_path: ModelPath = None,
) -> None:
    """Find the chunks that are nearest in meaning to a query.

    Scores are cosine similarities, 1 for the same meaning. The query goes
    through the pipeline's own model, on this machine: that of a running
    pgembed serve, if there is one.

    With --where, all that fulfil it can be found, with an index too. With
    --rerank, a model that reads query and chunk together orders the nearest,
    and with --hybrid, chunks with the query's words are found, too.

    Example: pgembed search reports "stent" --where "event_type = 'D'" --per-record
    """
    # Read when numpy is first imported. In one short text, its threads wait more than they compute.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    request = wanted.request(query)
    hits = _search(conninfo, name, query, model_path, request, wanted)
    if as_json:
        from pgqueue_embed.vector_search.hit_json import hit_json

        print_json([hit_json(hit, request) for hit in hits or ()])
    elif hits is None:
        say(no_vectors(name))
    else:
        show_hits(hits)


def _search(
    conninfo: str,
    name: str,
    query: str,
    model_path: str | None,
    request: SearchRequest,
    wanted: WantedSearch,
) -> list[Hit] | None:
    """Return the hits; None where the pipeline has no vectors yet."""
    from pgqueue_embed.db.migrate import check_schema
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.pipeline.catalog import load_pipeline
    from pgqueue_embed.vector_search.hit_json import reads_exactly
    from pgqueue_embed.vector_search.query import has_vectors
    from pgqueue_embed.vector_search.rights import naming_missing_rights

    with connect(conninfo) as connection:
        reads_exactly(connection)
        with naming_missing_rights(connection):
            check_schema(connection)
            pipeline = load_pipeline(connection, name)
        if not has_vectors(connection, pipeline):
            return None
        return _find(connection, pipeline, query, model_path, request, wanted)


def _find(
    connection: Connection,
    pipeline: Pipeline,
    query: str,
    model_path: str | None,
    request: SearchRequest,
    wanted: WantedSearch,
) -> list[Hit]:
    from pgqueue_embed.vector_search.query import search as find

    vector, unknown_share = _encoded(pipeline, query, model_path)
    _warn_of_unknown_words(pipeline, unknown_share)
    hits = find(connection, pipeline, vector, request, wanted.score(query))
    if not hits or (len(hits) < request.limit and request.threshold > LEAST_COSINE):
        behind = request.offset + len(hits) if hits else 0
        anything = replace(
            request,
            limit=1,
            offset=behind,
            threshold=LEAST_COSINE,
            mmr=None,
            words=None,
            lexical_weight=None,
        )
        others = find(connection, pipeline, vector, anything)
        if not hits:
            _say_what_would_be_found(others, request)
        elif others:
            found = f"{len(hits)} of at most {request.limit}"
            say(f"{found}: all others score less than --threshold {request.threshold:g}", err=True)
    return hits


def _encoded(
    pipeline: Pipeline, query: str, model_path: str | None
) -> tuple[NDArray[np.float32], float]:
    """Return the query's vector, and the share of its tokens that the model does not know."""
    from pgqueue_embed.vector_search.warm_query import ask_for_vector

    warm = None if model_path else ask_for_vector(pipeline, query)
    if warm is not None:
        return warm.vector, warm.unknown_share
    from pgqueue_embed.vector_search.query_vector import QueryEncoder

    with _waiting(f"loading {pipeline.model}"):
        encoder = QueryEncoder(pipeline, model_path=model_path)
        vector = encoder.encode(query, pipeline.spec.truncate_dim)
    return vector, encoder.unknown_share(query)


def _waiting(what: str) -> AbstractContextManager[object]:
    """Show that something happens while a model is loaded, on a terminal."""
    from pgqueue_embed.cli.display import progress_console

    return progress_console().status(what)


def _warn_of_unknown_words(pipeline: Pipeline, share: float) -> None:
    if share >= WORRYING_SHARE:
        from pgqueue_embed.source.unknown_tokens import READERS

        say(
            f"warning: {pipeline.model} does not know {percent(share, 0)} of the query's tokens, so"
            f" what it finds means little; models for more languages: {READERS}",
            fg="yellow",
            err=True,
        )


def _say_what_would_be_found(nearest: Sequence[Hit], request: SearchRequest) -> None:
    for hit in nearest:
        if hit.score >= request.threshold:
            say(f"--offset {request.offset} leaves out all that there is", err=True)
            continue
        say(f"nothing reaches the --threshold; the nearest chunk has {hit.score:.3f}", err=True)
    if not nearest:
        say("no chunk fulfils the --where", err=True)


def _shown_score(hit: Hit) -> float:
    """Return what orders a hit."""
    given = (hit.rerank_score, hit.hybrid_score)
    return next((each for each in given if each is not None), hit.score)


# In the place of a chunk that the target stores no text of.
NO_TEXT = "(no text: the record has changed since, or is gone)"


def _place_of(hit: Hit) -> str:
    if hit.start_char is None or hit.end_char is None:
        return ", in a table that is being adopted"
    of_record = f" of {hit.matched} that match" if hit.matched and hit.matched > 1 else ""
    cosine = "" if _shown_score(hit) == hit.score else f", cosine {hit.score:.3f}"
    return (
        f", chunk {hit.chunk_index}{of_record}, characters {hit.start_char:,}–{hit.end_char:,}"
        f"{cosine}"
    )


def _shown_value(value: Any) -> str:
    return json_text(value, allow_nan=True) if isinstance(value, (dict, list)) else str(value)


def show_hits(hits: Sequence[Hit]) -> None:
    """Print each hit with its score, its place and its text, wrapped for reading."""
    from rich.text import Text

    out = console()
    for number, hit in enumerate(hits):
        if number:
            out.print()
        place = _place_of(hit)
        record = ("record " + one_line(hit.key_text), "bold")
        score = (f"{_shown_score(hit):.3f}", "bold green")
        out.print(Text.assemble(score, "  ", record, (place, "dim")), soft_wrap=True)
        for name, value in hit.columns.items():
            shown = f"{one_line(name)}: {one_line(_shown_value(value))}"
            out.print(Text(" " * INDENT + shown, style="cyan"), soft_wrap=True)
        text = NO_TEXT if hit.chunk is None else one_line(hit.chunk)
        for line in Text(text).wrap(out, min(out.width, MAX_WIDTH) - INDENT):
            out.print(" " * INDENT + line.plain.rstrip(), soft_wrap=True)
