"""A pipeline to alter."""

from __future__ import annotations

import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from tests.support.corpus import texts
from tests.support.working import embed_documents


@pytest.fixture
def reports(connection: Connection, session: Session) -> Pipeline:
    """A pipeline whose records are embedded, one of them empty."""
    return embed_documents(connection, session, [*texts(60), None])
