"""The bottleneck of a pipeline in words, from the seconds of its claims in each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

# Less than half of the time is no bottleneck.
LEAST_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class StageSeconds:
    """Seconds of all claims together; `lock_seconds` are a part of `write_seconds`."""

    read_seconds: float = 0.0
    chunk_seconds: float = 0.0
    embed_seconds: float = 0.0
    write_seconds: float = 0.0
    lock_seconds: float = 0.0

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> StageSeconds:
        """Return the sums of the columns of `rows` that are called as the fields are."""
        return cls(**{each.name: sum(row[each.name] for row in rows) for each in fields(cls)})

    def apart(self) -> dict[str, float]:
        """Return the seconds of each stage of `STAGES`, in order; waiting is no part of writing."""
        return {
            "read": self.read_seconds,
            "chunk": self.chunk_seconds,
            "embed": self.embed_seconds,
            "write": max(self.write_seconds - self.lock_seconds, 0.0),
            "lock": self.lock_seconds,
        }


# The stages of a claim, as a person reads them.
STAGES = {
    "read": "reading",
    "chunk": "cutting into chunks",
    "embed": "the device",
    "write": "writing",
    "lock": "waiting for locks",
}


def bottleneck(stages: StageSeconds) -> str | None:
    """Return where most of the time goes; None if it goes nowhere in particular."""
    shares = stages.apart()
    stage, seconds = max(shares.items(), key=lambda each: each[1])
    total = sum(shares.values())
    if not total or seconds < LEAST_SHARE * total:
        return None
    return f"{100 * seconds / total:.0f} % {STAGES[stage]}"
