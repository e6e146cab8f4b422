"""Reads stored chunks for people: with their rights, and with a word for what is missing.

The texts of a pipeline that stores none are the source's: its rights are asked for, column by
column, and where it has other names by now, an error says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pgqueue_embed.db.faults import on_users_tables
from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.steps import Steps, run
from pgqueue_embed.errors import MissingRight, PipelineFault, RoleFault, UntrustedCode
from pgqueue_embed.pipeline.missing import if_renamed, missing_of
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.source.condition_names import names_whole_rows, possible_columns
from pgqueue_embed.source.passages import WHAT_ONE_MAY_SEE
from pgqueue_embed.source.trust import trusting
from pgqueue_embed.vector_search.request import SearchRequest
from pgqueue_embed.vector_search.rights import Readable, naming_missing_rights

# What a search does, as the beginning of an error.
COMPARING = "comparing its vectors"


def texts_of(pipeline: Pipeline) -> list[Readable]:
    """Return what is read for the texts of chunks."""
    return _readable(pipeline, ())


def read_by(pipeline: Pipeline, request: SearchRequest) -> list[Readable]:
    """Return what a search reads."""
    where = request.where or ""
    if not request.reads_source:
        return texts_of(pipeline)
    if names_whole_rows(where):
        return [Readable(pipeline.target), Readable(pipeline.source)]
    named = (*pipeline.key.names, *request.columns, *possible_columns(where))
    return _readable(pipeline, named)


def _readable(pipeline: Pipeline, named: tuple[str, ...]) -> list[Readable]:
    """Return what is read, with the columns of the source that are `named`."""
    spec = pipeline.spec
    if spec.into_column is not None:
        return [Readable(pipeline.source, (*_text(pipeline), spec.into_column, *named))]
    of_source = (*(() if spec.text else _text(pipeline)), *named)
    target = Readable(pipeline.target)
    return [target, Readable(pipeline.source, of_source)] if of_source else [target]


def _text(pipeline: Pipeline) -> tuple[str, ...]:
    return (*pipeline.key.names, *pipeline.document.recipe.document_names())


def why_unreadable(pipeline: Pipeline, error: PipelineFault) -> Steps[str]:
    """Return what `error` says, or that the source of the texts has changed, and the way out."""
    missing = None if pipeline.spec.text else (yield from missing_of(pipeline))
    if missing is None:
        return str(error)
    return (
        f"{pipeline.name} stores no texts, and {missing}; {if_renamed(pipeline)}; else put it back"
        " as it was"
    )


@contextmanager
def reading_chunks(connection: Connection, pipeline: Pipeline, doing: str) -> Iterator[None]:
    """Read the chunks of a pipeline in the block, `doing` something, such as "reading its chunks".

    Raises MissingRight with each GRANT, UntrustedCode, and PipelineFault for what is missing.
    """
    try:
        with (
            naming_missing_rights(connection, texts_of(pipeline)),
            trusting(
                connection, pipeline.spec, searching=True, reads_source=not pipeline.spec.text
            ),
            on_users_tables(connection, doing),
            connection.transaction(),
        ):
            connection.execute(WHAT_ONE_MAY_SEE)
            yield
    except (UntrustedCode, MissingRight, RoleFault):
        raise
    except PipelineFault as error:
        why = run(connection, why_unreadable(pipeline, error))
        raise PipelineFault(why, is_of_the_table=error.is_of_the_table) from None
