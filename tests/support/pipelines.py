"""Pipelines without a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pgqueue_embed.connect import Connection
from pgqueue_embed.pipelines import PipelineSpec, check_tables, create_pipeline
from pgqueue_embed.settings import Pipeline, Table
from tests.support.fakes import FAKE_MODEL

REPORTS = Table(schema="public", name="reports")


def make_pipeline(
    connection: Connection,
    source: Table = REPORTS,
    *,
    name: str = "reports",
    dimensions: int = FAKE_MODEL.dimensions,
    **fields: Any,
) -> Pipeline:
    """Create a pipeline over `source` (columns ``id`` and ``body``) and its target table.

    The target is ``<source>_chunks``. `fields` are any others of PipelineSpec.
    """
    if "target" not in fields:
        fields["target"] = Table(schema=source.schema, name=f"{source.name}_chunks")
    defaults = {
        "id_field": "id",
        "text_field": "body",
        "chunk_tokens": 16,
        "overlap_tokens": 4,
    }
    spec = PipelineSpec(name=name, source=source, **{**defaults, **fields})
    id_type = check_tables(connection, spec)
    model = replace(FAKE_MODEL, dimensions=dimensions)
    return create_pipeline(connection, spec, id_type, model)
