"""The size of rounds of searches: by what an index scan took in the last rounds of its kind."""

from __future__ import annotations

import statistics
from collections import OrderedDict, deque
from collections.abc import Sequence

from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search.request import SearchRequest

# All index scans of a round take as long as so many times what is sent besides, and no longer:
# where one takes long, others are searched for beside it, not behind it. Both take longer
# where processors are busy.
ROUND_SCANS = 16

LAST_ROUNDS = 8

# Clients may ask for any limit and any columns, and generations replace one another.
MOST_KINDS = 256


class Paces:
    """What an index scan took in the last rounds of each kind, in units of what was sent besides.

    A scan for five hits tells nothing of one for a thousand, whose rows a round holds besides.
    """

    def __init__(self) -> None:
        self._paces: OrderedDict[tuple[int, SearchRequest], deque[float]] = OrderedDict()

    def note(self, pipeline: Pipeline, request: SearchRequest, pace: float) -> None:
        """Take in the pace of a round."""
        key = (pipeline.id, request)
        self._paces.setdefault(key, deque(maxlen=LAST_ROUNDS)).append(pace)
        self._paces.move_to_end(key)
        if len(self._paces) > MOST_KINDS:
            self._paces.popitem(last=False)

    def round_size(self, pipeline: Pipeline, request: SearchRequest) -> int:
        """Return how many searches make the next round of this kind."""
        return round_size(self._paces.get((pipeline.id, request), ()))


def round_size(paces: Sequence[float]) -> int:
    """Return how many searches make a round, by the paces of the last ones.

    A slow one counts at once: an index may be gone, or no longer in memory.
    """
    pace = max(statistics.median(paces), paces[-1]) if paces else ROUND_SCANS
    return max(1, int(ROUND_SCANS / pace))
