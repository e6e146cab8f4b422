"""A pipeline whose target table has parts."""

from __future__ import annotations

import pytest

from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline


@pytest.fixture
def reports(connection: Connection) -> Pipeline:
    """A pipeline of 30 records in three parts, with an index to be."""
    return load_pipeline(connection, "reports")
