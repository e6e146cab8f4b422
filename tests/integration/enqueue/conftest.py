"""A pipeline with nothing queued, and odd settings of its database."""

from __future__ import annotations

import pytest

from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from tests.support.enqueuing import ODD_SETTINGS, set_of_database


@pytest.fixture
def pipeline(connection: Connection) -> Pipeline:
    """A pipeline over 1,000 records."""
    return load_pipeline(connection, "reports")


@pytest.fixture
def odd_settings(connection: Connection) -> None:
    """Settings of the database that change how dates and times read, for sessions to come."""
    set_of_database(connection, ODD_SETTINGS)
