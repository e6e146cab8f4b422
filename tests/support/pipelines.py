"""Pipelines without a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.lifecycle.create import Prepared, check_tables, create_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.pipeline.spec_checks import checked
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.corpus import make_source
from tests.support.fakes import FAKE_MODEL

REPORTS = Table(schema="public", name="reports")


def make_pipeline(
    connection: Connection,
    source: Table = REPORTS,
    *,
    name: str = "reports",
    dimensions: int = FAKE_MODEL.dimensions,
    id_field: str = "id",
    text_field: str = "body",
    **fields: Any,
) -> Pipeline:
    """Create a pipeline over `source` (key `id_field`, text `text_field`) and its target table.

    The target is ``<source>_chunks``. `fields` are any of PipelineSpec, those two included.
    """
    if "target" not in fields:
        fields["target"] = Table(schema=source.schema, name=f"{source.name}_chunks")
    defaults = {
        "id_fields": (id_field,),
        "text_fields": () if "template" in fields else (text_field,),
        "chunk_tokens": 16,
        "overlap_tokens": 4,
    }
    spec = checked(PipelineSpec(name=name, source=source, **{**defaults, **fields}))
    shape = check_tables(connection, spec)
    model = replace(FAKE_MODEL, dimensions=dimensions)
    return create_pipeline(connection, spec, shape, model)


def queue_all(connection: Connection, documents: Sequence[str], **fields: Any) -> Pipeline:
    """Make a source of `documents` and a pipeline over it, and queue every record."""
    make_source(connection, documents)
    pipeline = make_pipeline(connection, **fields)
    assert enqueue(connection, pipeline, Selection()) == len(documents)
    return pipeline


def queue_documents(
    connection: Connection, documents: Iterable[str | None], **fields: Any
) -> Pipeline:
    """Make a source of `documents`, keyed from 1, with a pipeline, and queue all of it."""
    pipeline = make_pipeline(connection, make_source(connection, documents), **fields)
    enqueue(connection, pipeline, Selection())
    return pipeline


def prepare_with_fake_model(
    connection: Connection, spec: PipelineSpec, reference: str, revision: str | None = None
) -> Prepared:
    """Do what `create.prepare` does without loading a model; one of another name is another."""
    del revision
    model = replace(FAKE_MODEL, name=reference)
    if reference != FAKE_MODEL.name:
        model = replace(model, fingerprint="e" * 64, dimensions=4)
    shape = check_tables(connection, spec)
    return Prepared(spec=spec, shape=shape, model=model, tokenizer=None, notes=())
