"""A pipeline to alter."""

from __future__ import annotations

import pytest

from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline


@pytest.fixture
def reports(connection: Connection) -> Pipeline:
    """A pipeline whose records are embedded; PREPARED of a file says which."""
    return load_pipeline(connection, "reports")
