"""Figures of a benchmark with their rounds, and targets to reach."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One quantity, measured once a round.

    `note` is what a reader must know to read it, `details` go into the JSON only.
    """

    part: str
    name: str
    corpus: str
    unit: str
    values: Sequence[float]
    note: str = ""
    details: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.values)

    def to_json(self) -> dict[str, Any]:
        """Return the figure with its median, as values that JSON can carry."""
        return {**asdict(self), "values": list(self.values), "median": self.median}


@dataclass(frozen=True, kw_only=True)
class Reach:
    """A target: `measured` must be at least `target`, or at most if `at_most`."""

    name: str
    measured: float
    target: float
    unit: str = "x"
    at_most: bool = False

    @property
    def is_reached(self) -> bool:
        """Whether the target is met."""
        return self.measured <= self.target if self.at_most else self.measured >= self.target

    def to_json(self) -> dict[str, Any]:
        """Return the target with its verdict, as values that JSON can carry."""
        return {**asdict(self), "reached": self.is_reached}


@dataclass(kw_only=True)
class Measured:
    """What one part of the benchmark found; `notes` are sentences for below the table."""

    figures: list[Figure] = field(default_factory=list)
    reaches: list[Reach] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, other: Measured) -> None:
        """Take in what another part found."""
        self.figures += other.figures
        self.reaches += other.reaches
        self.notes += other.notes


def interleaved(
    rounds: int,
    variants: Mapping[str, Callable[[], T]],
    *,
    on_run: Callable[[int, str], None] = lambda number, name: None,
) -> dict[str, list[T]]:
    """Run all variants once a round, in turned order, and return the outcomes by variant.

    What the machine does meanwhile (heat, neighbours) meets all variants alike.
    """
    names = list(variants)
    outcomes: dict[str, list[T]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            on_run(number, name)
            outcomes[name].append(variants[name]())
    return outcomes


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median over the rounds of the ratio within each round."""
    pairs = zip(numerators, denominators, strict=True)
    return statistics.median(above / below for above, below in pairs)


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the value that `percent` of `values` do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
