"""A pipeline with capture on."""

from __future__ import annotations

import pytest

from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline


@pytest.fixture
def pipeline(connection: Connection) -> Pipeline:
    """A pipeline over ``public.reports`` (id, body, other) of nine records, with capture on."""
    return load_pipeline(connection, "reports")
