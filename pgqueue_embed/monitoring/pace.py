"""The rate of a pipeline, smoothed over minutes, and the time that is left: a range.

Commits come in bursts, of some 16 seconds of work each, and machines come and go. A rate of the
last minute therefore doubles and halves from one look to the next. This one is over up to twelve
minutes, and what parts of them differ by says how far it can be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WINDOW_SECONDS = 720.0

# Work before a pause of this length says nothing of the work behind it.
PAUSE_SECONDS = 180.0

# Below this much work nothing is known.
LEAST_SECONDS = 60.0
LEAST_STEPS = 3

# So much of the time behind the last commit is work on the next one, and not a standstill.
USUAL_SECONDS = 30.0

# The work is parted into so many stretches, whose rates are compared.
STRETCHES = 6

# Student's t for 80 %, by the degrees of freedom.
T_80 = (math.inf, 3.08, 1.89, 1.64, 1.53, 1.48)

# However even the rate, the texts to come may be longer; and a range wider than a factor of three
# is no answer.
LEAST_DOUBT = 0.04
MOST_DOUBT = 0.5


@dataclass(frozen=True, kw_only=True)
class HistoryStep:
    """What was committed in some seconds of the clock.

    `began_seconds_ago` is when the work on the first of its commits began, `ended_seconds_ago`
    when the last was made.
    """

    records: int
    began_seconds_ago: float
    ended_seconds_ago: float


@dataclass(frozen=True, kw_only=True)
class Pace:
    """A rate in records per second over `seconds`, good to within the share `doubt` of it.

    `doubt` is infinite for a rate of too little work to tell.
    """

    records_per_second: float
    seconds: float
    doubt: float


@dataclass(frozen=True, kw_only=True)
class TimeLeft:
    """At least and at most so many seconds."""

    low_seconds: float
    high_seconds: float


def pace_of(steps: Sequence[HistoryStep]) -> Pace | None:
    """Return the pace of the present stretch of work, of which `steps` are given, oldest first.

    None if nothing was committed for a while.
    """
    present = _present(steps)
    if not present:
        return None
    # What is still in the making is not committed yet, so its time does not count either.
    end = min(max(present[-1].ended_seconds_ago, 0.0), USUAL_SECONDS)
    began = max(step.began_seconds_ago for step in present[:LEAST_STEPS])
    seconds = max(min(began, WINDOW_SECONDS) - end, 1.0)
    rate = sum(step.records for step in present) / seconds
    if seconds < LEAST_SECONDS or len(present) < LEAST_STEPS or not rate:
        return Pace(records_per_second=rate, seconds=seconds, doubt=math.inf)
    return Pace(records_per_second=rate, seconds=seconds, doubt=_doubt(present, end, seconds, rate))


def _present(steps: Sequence[HistoryStep]) -> list[HistoryStep]:
    """Return those within the window and behind the last pause."""
    found: list[HistoryStep] = []
    newer = 0.0
    for step in reversed(steps):
        if (
            step.ended_seconds_ago > WINDOW_SECONDS
            or step.ended_seconds_ago - newer > PAUSE_SECONDS
        ):
            break
        found.append(step)
        newer = max(newer, step.began_seconds_ago)
    return found[::-1]


def _doubt(steps: Sequence[HistoryStep], end: float, seconds: float, rate: float) -> float:
    """Return half the width of the 80 % interval of the rate, as a share of it."""
    number = max(2, min(STRETCHES, len(steps) // 2))
    width = seconds / number
    done = [0.0] * number
    for step in steps:
        age = min(max(step.ended_seconds_ago - end, 0.0), seconds - 1e-9)
        done[int(age / width)] += step.records
    rates = [records / width for records in done]
    mean = sum(rates) / number
    variance = sum((each - mean) ** 2 for each in rates) / (number - 1)
    return max(T_80[number - 1] * math.sqrt(variance / number) / rate, LEAST_DOUBT)


def time_left(records: int, pace: Pace | None) -> TimeLeft | None:
    """Return how long `records` will take at `pace`; None if that is not known yet."""
    if pace is None or pace.doubt > MOST_DOUBT:
        return None
    return TimeLeft(
        low_seconds=records / (pace.records_per_second * (1 + pace.doubt)),
        high_seconds=records / (pace.records_per_second * (1 - pace.doubt)),
    )
