"""A pipeline that fails where a test wants it, and its neighbour, without waits between tries."""

from __future__ import annotations

import pytest

from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.worker import loop


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "reconnect_delay_seconds", lambda _failures, jitter: 0.01)
    monkeypatch.setattr(loop, "poll_delay_seconds", lambda _idle_polls, jitter: 0.1)


@pytest.fixture
def pipelines(connection: Connection) -> list[Pipeline]:
    """A pipeline that is embedded and whose records have changed, and one that is queued."""
    return [load_pipeline(connection, name) for name in ("reports", "notes")]
