"""Learns from real claims how large batches should be.

The best size depends on caches, on launch costs and on the width of the model, and no table knows
the next machine. Claims are work that has to be done anyhow: each is computed in batches of another
size, until all sizes have been timed a few times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

TURNS = 3
# So many batches of the largest size are enough to time a size by.
FEWEST_BATCHES = 4
# A smaller batch holds less memory and renews the lease more often, so that it wins within noise.
AS_GOOD = 0.97
# A lease is renewed behind each batch: of a slow model, larger ones are not tried.
LONGEST_SECONDS = 5.0


class BatchSizes:
    """The sizes that are to be tried, in tokens of a batch, and the rates that each has had.

    ``first`` is the one that an unknown device begins with.
    """

    def __init__(self, sizes: Sequence[int], *, first: int) -> None:
        self._rates: dict[int, list[float]] = {size: [] for size in sizes}
        self._first = first

    @property
    def best(self) -> int | None:
        """The size to use from now on; None as long as it is not known."""
        if any(len(rates) < TURNS for rates in self._rates.values()):
            return None
        return best_size({size: median(rates) for size, rates in self._rates.items()})

    @property
    def next(self) -> int:
        """The size to compute the next claim in: of those with the fewest turns the first.

        From any thread: sizes may be left out meanwhile.
        """
        rates = self._rates
        return min(rates, key=lambda size: (len(rates[size]), size != self._first, size))

    def took(self, size: int, tokens: int, seconds: float) -> None:
        """Count what a claim of so many tokens took; one that fills few batches does not count.

        ``size`` may be a little less than the one that had its turn, where memory is small.
        """
        meant = min((each for each in self._rates if each >= size), default=None)
        if meant is None or tokens < FEWEST_BATCHES * max(self._rates) or seconds <= 0:
            return
        self._rates[meant].append(tokens / seconds)
        self._drop(lambda larger: larger * seconds > LONGEST_SECONDS * tokens)

    def does_not_fit(self, size: int) -> None:
        """Try none of this size or larger: they are more than the device's memory holds."""
        self._drop(lambda larger: larger >= size)

    def _drop(self, is_too_large: Callable[[int], bool]) -> None:
        """Leave out sizes without a turn; the smallest is there for whatever comes."""
        smallest = min(self._rates)
        kept = (each for each in self._rates if each == smallest or not is_too_large(each))
        self._rates = {each: self._rates[each] for each in kept}


def best_size(rates: Mapping[int, float]) -> int:
    """Return the smallest size whose rate is as good as any, noise allowed for."""
    return min(size for size, rate in rates.items() if rate >= AS_GOOD * max(rates.values()))
