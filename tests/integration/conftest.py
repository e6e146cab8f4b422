"""The common ground of tests in a database: a worker's session in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db import locks
from pgqueue_embed.lifecycle import switch as switching
from tests.support.working import open_session


@pytest.fixture
def session(conninfo: str) -> Iterator[Session]:
    """What a worker loop works with, in the test's database."""
    with open_session(conninfo) as opened:
        yield opened


@pytest.fixture
def quick_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A switch of generations waits for nobody: nobody else works meanwhile."""
    monkeypatch.setattr(locks, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(switching, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(switching, "STALL_SECONDS", 0.0)
    monkeypatch.setattr(switching, "POLL_SECONDS", 0.01)
