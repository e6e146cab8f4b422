"""The command that searches: search."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pgqueue_embed.cli.display import console, one_line, print_json, say
from pgqueue_embed.cli.options import connected
from pgqueue_embed.cli.pipeline_options import PipelineName

if TYPE_CHECKING:
    from pgqueue_embed.db.session import Connection
    from pgqueue_embed.pipeline.pipeline import Pipeline
    from pgqueue_embed.vector_search.query import Hit
    from pgqueue_embed.vector_search.query_vector import QueryEncoder

# Longer lines are hard to read, however wide the terminal is.
MAX_WIDTH = 100
INDENT = 7

# Beyond this share of unknown tokens a query means little to its model.
WORRYING_SHARE = 0.2


Query = Annotated[str, typer.Argument(help="What to look for, in words.", show_default=False)]
Limit = Annotated[int, typer.Option("--limit", help="Show at most so many chunks.")]
Threshold = Annotated[float, typer.Option("--threshold", help="Least cosine similarity, -1 to 1.")]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print JSON: key, score, chunk_index, start_char, end_char, verbatim chunk.",
    ),
]
ModelPath = Annotated[
    str | None,
    typer.Option(
        "--model-path",
        help="The pipeline's model on this machine, if it lies elsewhere than its name says.",
        show_default=False,
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(search))


def search(
    conninfo: str,
    name: PipelineName,
    query: Query,
    limit: Limit = 5,
    threshold: Threshold = 0.0,
    as_json: AsJson = False,
    model_path: ModelPath = None,
) -> None:
    """Find the chunks that are nearest in meaning to a query.

    Scores are cosine similarities, 1 for the same meaning. The query goes
    through the pipeline's own model, on this machine.

    Example: pgembed search reports "battery overheated while charging"
    """
    from pgqueue_embed.db.migrate import check_schema
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.pipeline.catalog import load_pipeline
    from pgqueue_embed.vector_search import query as finder

    finder.check_options(limit, threshold)
    with connect(conninfo) as connection:
        check_schema(connection)
        pipeline = load_pipeline(connection, name)
        hits: list[Hit] = []
        if finder.has_vectors(connection, pipeline):
            hits = _search(connection, pipeline, query, model_path, limit, threshold)
        elif not as_json:
            say(f"{name} has no vectors yet; embed some: pgembed work")
            return
    if as_json:
        print_json([asdict(hit) for hit in hits])
    else:
        show_hits(hits)


def _search(
    connection: Connection,
    pipeline: Pipeline,
    query: str,
    model_path: str | None,
    limit: int,
    threshold: float,
) -> list[Hit]:
    from pgqueue_embed.vector_search.query import search as find
    from pgqueue_embed.vector_search.query_vector import QueryEncoder

    with _waiting(f"loading {pipeline.model}"):
        encoder = QueryEncoder(pipeline, model_path=model_path)
        vector = encoder.encode(query, pipeline.spec.truncate_dim)
    _warn_of_unknown_words(encoder, pipeline, query)
    hits = find(connection, pipeline, vector, limit=limit, threshold=threshold)
    if not hits:
        _say_what_would_be_found(find(connection, pipeline, vector, limit=1, threshold=-1))
    return hits


def _waiting(what: str) -> AbstractContextManager[object]:
    """Show that something happens while a model is loaded, on a terminal."""
    from pgqueue_embed.cli.display import progress_console

    return progress_console().status(what)


def _warn_of_unknown_words(encoder: QueryEncoder, pipeline: Pipeline, query: str) -> None:
    share = encoder.unknown_share(query)
    if share >= WORRYING_SHARE:
        from pgqueue_embed.source.unknown_tokens import READERS

        say(
            f"warning: {pipeline.model} does not know {share:.0%} of the query's tokens, so what it"
            f" finds means little; models for more languages: {READERS}",
            fg="yellow",
            err=True,
        )


def _say_what_would_be_found(nearest: Sequence[Hit]) -> None:
    for hit in nearest:
        say(f"nothing reaches the --threshold; the nearest chunk has {hit.score:.3f}", err=True)


def _place_of(hit: Hit) -> str:
    if hit.start_char is None or hit.end_char is None:
        return ", in a table that is being adopted"
    return f", chunk {hit.chunk_index}, characters {hit.start_char:,}–{hit.end_char:,}"


def show_hits(hits: Sequence[Hit]) -> None:
    """Print each hit with its score, its place and its text, wrapped for reading."""
    from rich.text import Text

    out = console()
    for number, hit in enumerate(hits):
        if number:
            out.print()
        place = _place_of(hit)
        record = ("record " + one_line(hit.key), "bold")
        score = (f"{hit.score:.3f}", "bold green")
        out.print(Text.assemble(score, "  ", record, (place, "dim")), soft_wrap=True)
        for line in Text(one_line(hit.chunk)).wrap(out, min(out.width, MAX_WIDTH) - INDENT):
            out.print(" " * INDENT + line.plain.rstrip(), soft_wrap=True)
