"""Print what the exploration of the protocol found: `python -m tests.model`."""

from __future__ import annotations

import sys

from tests.model.explorer import explore
from tests.model.test_protocol import BROKEN, WORLDS

for name, model in {**WORLDS, **{name: model for name, (model, _) in BROKEN.items()}}.items():
    explored = explore(model)
    verdict = f"BREACH: {explored.breach}" if explored.breach else "no breach"
    sys.stdout.write(f"{name}: {explored.states:,} states, {explored.steps:,} steps, {verdict}\n")
