"""The pipeline that the documents use as their example."""

from __future__ import annotations

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from tests.support.corpus import make_source
from tests.support.pipelines import make_pipeline


def event_pipeline(connection: Connection, documents: list[str | None]) -> Pipeline:
    """Make the tables and the pipeline that the documents use as their example."""
    source = make_source(
        connection,
        documents,
        table="event_text",
        id_field="mdr_text_key",
        text_field="foi_text",
    )
    return make_pipeline(
        connection,
        source,
        target=Table(schema="public", name="event_text_vectors"),
        id_field="mdr_text_key",
        text_field="foi_text",
    )
