"""The target of a pipeline: a table of chunks of its own, or a column of the source.

No other module knows which of the two it is. To read a target, it is a relation in the shape of a
table of chunks; to write it, a target replaces and clears the chunks of records.
"""

from __future__ import annotations

from pgqueue_embed.pipeline.document import Document
from pgqueue_embed.pipeline.key import Key
from pgqueue_embed.pipeline.partitioning import parse_partitioning
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.pipeline.spec_checks import NEXT_NAME
from pgqueue_embed.target.chunk_table import ChunkTable
from pgqueue_embed.target.chunk_text import ChunkText, hash_of, hash_of_text
from pgqueue_embed.target.chunk_view import ChunkView, TextView, View
from pgqueue_embed.target.chunks import ChunkRows, Right, Target, column_names
from pgqueue_embed.target.source_column import SourceColumn

__all__ = [
    "ChunkRows",
    "ChunkView",
    "Right",
    "Target",
    "View",
    "column_names",
    "hash_of",
    "hash_of_text",
    "new_target",
    "target_of",
    "view_of",
    "views_of",
]


def target_of(pipeline: Pipeline) -> Target:
    """Return the target of a pipeline that is there."""
    return new_target(
        pipeline.spec, pipeline.key, pipeline.document, is_made=pipeline.target_is_made
    )


def view_of(wanted: PipelineSpec, key: Key, document: Document) -> ChunkView:
    """Return the view of the target table and the source, which may be there or not."""
    return ChunkView(
        source=wanted.source,
        target=wanted.target,
        key=key,
        target_key=wanted.columns.fulltext_id,
        text=_text_of(wanted, key, document),
    )


def views_of(wanted: PipelineSpec, key: Key, document: Document) -> tuple[View, ...]:
    """Return the views that a pipeline has beside its target table.

    They are of the generation in use; its successor gets them with its name.
    """
    if wanted.into_column is not None or wanted.name.endswith(NEXT_NAME):
        return ()
    text = _text_of(wanted, key, document)
    of_text = (
        () if text is None else (TextView(target=wanted.target, source=wanted.source, text=text),)
    )
    return (*of_text, *([view_of(wanted, key, document)] if wanted.view else ()))


def _text_of(wanted: PipelineSpec, key: Key, document: Document) -> ChunkText | None:
    if wanted.text:
        return None
    return ChunkText(source=wanted.source, key=key, document=document, columns=wanted.columns)


def new_target(
    wanted: PipelineSpec, key: Key, document: Document, *, is_made: bool = True
) -> Target:
    """Return the target of a pipeline that may be yet to be made.

    `is_made` tells that `create` has made the target, or would.
    """
    if wanted.into_column is None:
        return ChunkTable(
            table=wanted.target,
            columns=wanted.columns,
            vector_type=wanted.vector_type,
            key=key,
            source=wanted.source,
            document=document,
            foreign_key=wanted.foreign_key,
            text=_text_of(wanted, key, document),
            views=views_of(wanted, key, document),
            ids=wanted.ids,
            partitioning=parse_partitioning(wanted.partition_by) if wanted.partition_by else None,
        )
    return SourceColumn(
        table=wanted.source,
        columns=wanted.columns,
        vector_type=wanted.vector_type,
        key=key,
        document=document,
        is_made=is_made,
    )
