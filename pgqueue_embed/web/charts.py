"""Charts as numbers of SVG: columns over time, and the parts of a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pgqueue_embed.monitoring.bottleneck import STAGES, StageSeconds
from pgqueue_embed.monitoring.details import QUARTERS
from pgqueue_embed.monitoring.snapshot import HISTORY_MINUTES
from pgqueue_embed.quantities import count, duration

HEIGHT = 100.0

# A column of few records is to be seen beside one of many.
LEAST_HEIGHT = 3.0


# The charts there are, by their columns.
IN_ALL = {HISTORY_MINUTES: "in 30 min", QUARTERS: "in 24 h"}


@dataclass(frozen=True)
class Bar:
    """One column, in parts of the chart's width 1 and of HEIGHT, and what it says."""

    x: float
    y: float
    width: float
    height: float
    says: str


@dataclass(frozen=True, kw_only=True)
class Columns:
    """A chart of columns; `says` is all of it in a sentence, `highest` its largest number."""

    columns: Sequence[Bar]
    says: str
    highest: int


def columns(values: Sequence[int], *, ends_at: datetime, step: timedelta, noun: str) -> Columns:
    """Return a chart of `values`, one a `step` of time, the last of which ends at `ends_at`."""
    highest, total, local = max(values, default=0), sum(values), ends_at.astimezone()
    drawn = []
    for place, value in enumerate(values):
        if value <= 0:
            continue
        height = max(HEIGHT * value / highest, LEAST_HEIGHT)
        begins = local - (len(values) - place) * step
        says = f"{begins:%H:%M}: {count(value, noun)}"
        drawn.append(Bar(place, HEIGHT - height, 0.8, height, says))
    every = duration(step.total_seconds())
    says = f"{count(total, noun)} {IN_ALL[len(values)]}, at most {highest:,} in {every}"
    return Columns(columns=drawn, says=says, highest=highest)


@dataclass(frozen=True)
class Segment:
    """One part of a whole: where it begins and how wide it is, 0 to 100, and its seconds."""

    name: str
    label: str
    x: float
    percent: float
    seconds: float


def stage_parts(stages: StageSeconds) -> list[Segment]:
    """Return what the seconds of claims went to, in the order of the stages; nothing of none."""
    apart = stages.apart()
    total, x, parts = sum(apart.values()), 0.0, []
    for name, seconds in apart.items():
        if seconds:
            percent = 100 * seconds / total
            parts.append(Segment(name, STAGES[name], x, percent, seconds))
            x += percent
    return parts
