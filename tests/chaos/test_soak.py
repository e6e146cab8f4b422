"""A short soak under random faults; `make chaos` runs a long one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pgqueue_embed.worker import supervisor
from tests.chaos.soak.plan import Plan
from tests.chaos.soak.run import soak

SECONDS = 10
RECORDS = 1000


@pytest.mark.timeout(300)
def test_promise_is_kept_under_random_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(random.SystemRandom().randint(1, 10**6))
    monkeypatch.setattr(supervisor, "restart_delay_seconds", lambda _crashes: 0.2)
    happened = soak(plan, seconds=SECONDS, records=RECORDS, folder=tmp_path)
    assert happened["records checked"] > RECORDS // 2, f"seed {plan.seed}: {happened}"
