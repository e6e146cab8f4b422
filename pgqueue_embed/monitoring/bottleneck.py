"""The bottleneck of a pipeline in words, from the seconds of its claims in each stage."""

from __future__ import annotations

from dataclasses import dataclass

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


def bottleneck(stages: StageSeconds) -> str | None:
    """Return where most of the time goes; None if it goes nowhere in particular."""
    shares = {
        "the device": stages.embed_seconds,
        "reading": stages.read_seconds,
        "cutting into chunks": stages.chunk_seconds,
        "writing": stages.write_seconds - stages.lock_seconds,
        "waiting for locks": stages.lock_seconds,
    }
    name, seconds = max(shares.items(), key=lambda each: each[1])
    total = sum(shares.values())
    if not total or seconds < LEAST_SHARE * total:
        return None
    return f"{100 * seconds / total:.0f} % {name}"
