"""The plan of a soak, decided by its seed so that a few seeds go through every kind of pipeline."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.chaos.soak.roles import EMBEDDER, GUEST


@dataclass(frozen=True)
class Plan:
    """The kind of pipeline and of workers, and chance."""

    seed: int

    @property
    def sync(self) -> bool:
        """Whether changes are captured; nothing is enqueued after the start then."""
        return self.seed % 2 == 0

    @property
    def foreign_key(self) -> bool:
        """Whether the vectors refer to the source, so that changes of keys take them along."""
        return self.seed % 3 == 0

    @property
    def roles(self) -> tuple[str | None, ...]:
        """The role of each worker, None for the superuser; every other seed has no superuser."""
        return (None if self.sync else EMBEDDER, EMBEDDER, GUEST)

    def chance(self, whose: str) -> random.Random:
        """Return the chance of one of those who act at once."""
        return random.Random(f"{self.seed} {whose}")

    def __str__(self) -> str:
        told = "--sync" if self.sync else "enqueue"
        roles = ", ".join(role or "superuser" for role in self.roles)
        return f"{told}{' --foreign-key' if self.foreign_key else ''}; workers: {roles}"
