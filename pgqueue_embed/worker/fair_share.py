"""The order of pipelines in their turns: fair by the time that their claims take, not by number.

Every pipeline has a clock that runs while it is worked on, the slower the higher its priority,
and the one whose clock is behind comes first. So each gets a share of the time in proportion to
its priority, however large its claims, records or queue are.
"""

from __future__ import annotations

from collections.abc import Mapping


class FairShare:
    """The clocks of the pipelines of one worker; not safe for several threads at once."""

    def __init__(self) -> None:
        self._clocks: dict[int, float] = {}
        self._last_ids: set[int] = set()

    def order(self, priorities: Mapping[int, int]) -> list[int]:
        """Return the ids of `priorities`, all with something to claim, by whose turn it is.

        One that had nothing to claim before starts level with the others: idleness saves nothing
        up, or it would have the worker to itself until it has caught up.
        """
        stayed = self._last_ids & priorities.keys()
        level = min((self._clocks[each] for each in stayed), default=0.0)
        for newcomer in priorities.keys() - stayed:
            self._clocks[newcomer] = max(self._clocks.get(newcomer, 0.0), level)
        self._last_ids = set(priorities)
        return sorted(priorities, key=lambda each: (self._clocks[each], each))

    def charge(self, pipeline_id: int, seconds: float, priority: int) -> None:
        """Count the time of a claim; a negative one takes back what was expected and not used."""
        self._clocks[pipeline_id] = self._clocks.get(pipeline_id, 0.0) + seconds / priority
