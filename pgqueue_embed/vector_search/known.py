"""Findings of searches about a database's pipelines, kept for a moment for the next ones."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search.relation import Relation
from pgqueue_embed.vector_search.request import SearchRequest

KNOWN_SECONDS = 2.0

# Clients may ask for any columns, in any order.
MOST_KEPT = 256


class Known:
    """The pipelines of one database, and the SQL of searches in them, for KNOWN_SECONDS.

    A search that goes by it answers as one that knows nothing: in its own transaction it asks
    whether the pipeline is as it was loaded, and an error is believed only of what is looked at
    anew. What may be later is that an index that has just been built is used, and that a role's
    tables are found to have become a trap; those that may become one without their owner are not
    kept. Safe to use from many threads.
    """

    def __init__(self) -> None:
        self._pipelines: dict[str, Pipeline] = {}
        self._noted_at = -math.inf
        self._kept: dict[tuple[object, ...], tuple[Pipeline, Relation]] = {}

    def pipelines(self) -> list[Pipeline] | None:
        """Return all pipelines as they were noted a moment ago, or None."""
        is_known = time.monotonic() - self._noted_at < KNOWN_SECONDS
        return list(self._pipelines.values()) if is_known else None

    def pipeline(self, name: str) -> Pipeline | None:
        """Return the pipeline called `name` if it was noted a moment ago."""
        return next((each for each in self.pipelines() or () if each.name == name), None)

    def note(self, pipelines: Sequence[Pipeline]) -> None:
        """Know these pipelines from now on, and no others."""
        self._kept.clear()
        self._pipelines = {each.name: each for each in pipelines}
        self._noted_at = time.monotonic()

    def forget(self) -> None:
        """Know nothing: something is not as it was."""
        self._noted_at = -math.inf

    def relation(self, pipeline: Pipeline, request: SearchRequest, role: str) -> Relation | None:
        """Return the SQL that was kept for this pipeline object; what may run is `role`'s."""
        if request.where is not None:  # a person's own SQL
            return None
        loaded, found = self._kept.get(_shape(pipeline, request, role), (None, None))
        return found if loaded is pipeline else None

    def keep(self, pipeline: Pipeline, request: SearchRequest, role: str, found: Relation) -> None:
        """Keep what a search was found to read, by tables that are no trap and become none."""
        if request.where is None:
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            self._kept[_shape(pipeline, request, role)] = (pipeline, found)


def _shape(pipeline: Pipeline, request: SearchRequest, role: str) -> tuple[object, ...]:
    return (pipeline.id, role, request.columns, request.words is None, request.mmr is None)
