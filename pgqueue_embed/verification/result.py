"""The outcome of comparing a sample of stored vectors, and what it says of all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from statistics import median
from typing import Any

from pgqueue_embed.db.vectors import LENGTH_TOLERANCE

# The quantile of the normal distribution for 95 % in the middle.
Z = 1.959964

# What a sample is split by: fields of Compared.
SPLIT_BY = ("worker", "precision", "day")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A stored vector beside the one that the model gives in fp32 for the same chunk.

    `cosine` is 0 where the stored one has no direction or other dimensions, `length` its own.
    `worker`, `precision` and `day` say who wrote it, how and when, as far as the ledger knows.
    """

    key: str
    chunk_index: int
    cosine: float
    length: float
    worker: str | None
    precision: str | None
    day: date | None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Those of a sample that have one worker, precision or day; None where that is not known."""

    value: str | date | None
    compared: int
    differing: int
    lowest_cosine: float
    median_cosine: float


@dataclass(frozen=True, kw_only=True)
class Verification:
    """A sample of stored chunks, compared.

    A vector agrees with a cosine of at least `min_cosine` and a length of 1. `outdated` chunks were
    drawn and not compared: their record has changed since, and what was read for them is not known.
    """

    compared: tuple[Compared, ...]
    outdated: int
    min_cosine: float

    def agrees(self, each: Compared) -> bool:
        """Tell whether a stored vector is that of the model."""
        return each.cosine >= self.min_cosine and abs(each.length - 1) <= LENGTH_TOLERANCE

    @property
    def differing(self) -> tuple[Compared, ...]:
        """Those that do not agree, the least alike first."""
        found = [each for each in self.compared if not self.agrees(each)]
        return tuple(sorted(found, key=lambda each: (each.cosine, each.key, each.chunk_index)))

    @property
    def agreeing_share(self) -> float:
        """The share of the compared vectors that agree, 0 to 1; 0 without any."""
        if not self.compared:
            return 0.0
        return 1 - len(self.differing) / len(self.compared)

    @property
    def interval(self) -> tuple[float, float]:
        """Where the share of all stored vectors lies that agree, with 95 % confidence."""
        return wilson_interval(len(self.compared) - len(self.differing), len(self.compared))

    def groups(self, split_by: str) -> tuple[Group, ...]:
        """Return the sample by one of SPLIT_BY, in order; what is not known comes last."""
        groups: dict[Any, list[Compared]] = {}
        for each in self.compared:
            groups.setdefault(getattr(each, split_by), []).append(each)
        values = sorted(groups, key=lambda value: (value is None, str(value)))
        return tuple(self._group(value, groups[value]) for value in values)

    def _group(self, value: str | date | None, members: Sequence[Compared]) -> Group:
        cosines = [each.cosine for each in members]
        return Group(
            value=value,
            compared=len(members),
            differing=sum(not self.agrees(each) for each in members),
            lowest_cosine=min(cosines),
            median_cosine=median(cosines),
        )

    def as_json(self) -> dict[str, Any]:
        """Return all of it, but those that agree only by number."""
        return {
            "compared": len(self.compared),
            "outdated": self.outdated,
            "min_cosine": self.min_cosine,
            "agreeing_share": self.agreeing_share,
            "interval_95": list(self.interval),
            "groups": {name: [asdict(each) for each in self.groups(name)] for name in SPLIT_BY},
            "differing": [asdict(each) for each in self.differing],
        }


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the interval of Wilson (1927) for a share, with 95 % confidence; (0, 1) of nothing.

    It holds for shares near 1, where the usual plus and minus would say 100 % to 100 %.
    """
    if not trials:
        return 0.0, 1.0
    share, spread = successes / trials, Z * Z / trials
    middle = share + spread / 2
    half = Z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    return (0.0 if not successes else low), (1.0 if successes == trials else high)
