"""Searches that come together become one round: a transaction that searches near all vectors.

What a search sends besides its own index scan takes as long as some such scans, and is sent once a
round: while PostgreSQL searches, the next ones gather.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import DatabaseUnavailable
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.search_server.filter_condition import condition_of
from pgqueue_embed.search_server.paces import Paces
from pgqueue_embed.vector_search.hit import Hit
from pgqueue_embed.vector_search.known import Known
from pgqueue_embed.vector_search.query import search_together
from pgqueue_embed.vector_search.request import SearchRequest
from pgqueue_embed.vector_search.sessions import MOST_SESSIONS, Sessions, forget_what_was_set
from pgqueue_embed.vector_search.together import Spent

# A session is left for what is no search, so that records are read, and health is told, beside slow
# ones.
MOST_ROUNDS = MOST_SESSIONS - 1


@dataclass(eq=False, kw_only=True)
class _Asked:
    """A search that a client waits for."""

    vector: NDArray[np.float32]
    answer: asyncio.Future[list[Hit]]
    is_alone: bool = False  # since a round that it was in has failed


@dataclass(eq=False, kw_only=True)
class _Kind:
    """Searches of one pipeline that are alike but for their vectors."""

    pipeline: Pipeline
    request: SearchRequest
    filter: Mapping[str, Any] | None
    waiting: deque[_Asked] = field(default_factory=deque)
    rounds: int = 0  # that are under way

    @property
    def is_alone(self) -> bool:
        """Whether it is one search: conditions may make settings or wait, words are a query's."""
        has_condition = self.filter is not None or self.request.where is not None
        return has_condition or self.request.words is not None

    def take(self, most: int) -> list[_Asked]:
        """Take those who came first, but for who has left; none while more are to gather.

        Those that are to be alone stand in front.
        """
        if self.waiting and self.waiting[0].is_alone:
            most = 1
        if self.rounds and len(self.waiting) < most:
            return []
        taken: list[_Asked] = []
        while self.waiting and len(taken) < most:
            asked = self.waiting.popleft()
            if not asked.answer.done():
                taken.append(asked)
        return taken

    def put_back(self, taken: Sequence[_Asked]) -> None:
        """Let searches of a round that has failed wait for their turns, one by one."""
        for asked in reversed(taken):
            asked.is_alone = True
            self.waiting.appendleft(asked)


class SearchRounds:
    """Searches, in rounds over a few sessions; to be asked from one event loop.

    A search that fails, fails alone: a round of several that failed is run again, one by one. What
    PostgreSQL does for clients that have left, it is told to end once no other waits for it. Slow
    searches of one pipeline leave a session to those of another, and one to what is no search.
    """

    def __init__(self, sessions: Sessions, executor: Executor) -> None:
        self._sessions = sessions
        self._executor = executor
        self._kinds: dict[Hashable, _Kind] = {}  # those that have had a round last are last
        self._rounds: dict[asyncio.Task[None], int] = {}  # to the pipeline's id
        self._paces = Paces()

    async def find(
        self,
        pipeline: Pipeline,
        vector: NDArray[np.float32],
        request: SearchRequest,
        filter: Mapping[str, Any] | None = None,  # noqa: A002 - the word that pgembed.search has
    ) -> list[Hit]:
        """Return the hits, best first; raises PgembedError or psycopg.Error."""
        loop = asyncio.get_running_loop()
        asked = _Asked(vector=vector, answer=loop.create_future())
        kind = _Kind(pipeline=pipeline, request=request, filter=filter)
        key = asked if kind.is_alone else (id(pipeline), request)
        self._kinds.setdefault(key, kind).waiting.append(asked)
        loop.call_soon(self._begin)  # behind those that were answered together with this one
        return await asked.answer

    def _begin(self) -> None:
        """Start the rounds that are due, in turns, as long as there are sessions for them."""
        while any(self._has_begun(key) for key in list(self._kinds)):
            pass

    def _has_begun(self, key: Hashable) -> bool:
        kind = self._kinds[key]
        if not self._has_room_for(kind.pipeline):
            return False
        taken = kind.take(self._paces.round_size(kind.pipeline, kind.request))
        if taken:
            self._start(kind, taken)
            self._kinds[key] = self._kinds.pop(key)
        elif not kind.waiting and not kind.rounds:
            del self._kinds[key]
        return bool(taken)

    def _has_room_for(self, pipeline: Pipeline) -> bool:
        """Whether another round may begin; the last one is for a pipeline that has none."""
        left = MOST_ROUNDS - len(self._rounds)
        return left > (1 if pipeline.id in self._rounds.values() else 0)

    def _start(self, kind: _Kind, taken: Sequence[_Asked]) -> None:
        round_ = asyncio.ensure_future(self._run(kind, taken))
        kind.rounds += 1
        self._rounds[round_] = kind.pipeline.id
        round_.add_done_callback(partial(self._end, kind))

        def leave(_answer: asyncio.Future[list[Hit]]) -> None:
            if all(each.answer.cancelled() for each in taken):
                round_.cancel()

        for each in taken:
            each.answer.add_done_callback(leave)

    def _end(self, kind: _Kind, round_: asyncio.Task[None]) -> None:
        kind.rounds -= 1
        del self._rounds[round_]
        self._begin()

    async def _run(self, kind: _Kind, taken: Sequence[_Asked]) -> None:
        vectors = [each.vector for each in taken]
        try:
            work = partial(_found, self._sessions.known, kind, vectors)
            found, spent = await self._sessions.awaited(work, self._executor)
        except asyncio.CancelledError:  # all have left, or its thread is not to begin any more
            for each in taken:
                each.answer.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - it is for who waits
            self._failed(kind, taken, error)
            return
        if not kind.is_alone:
            self._paces.note(kind.pipeline, kind.request, spent.near / len(taken) / spent.besides)
        for each, hits in zip(taken, found, strict=True):
            if not each.answer.done():
                each.answer.set_result(hits)

    def _failed(self, kind: _Kind, taken: Sequence[_Asked], error: Exception) -> None:
        waiting = [each for each in taken if not each.answer.done()]
        # What keeps all of them from the database would do so again, one after the other.
        if len(taken) > 1 and not isinstance(error, DatabaseUnavailable):
            kind.put_back(waiting)
            return
        for each in waiting:
            each.answer.set_exception(error)


def _found(
    known: Known, kind: _Kind, vectors: Sequence[NDArray[np.float32]], connection: Connection
) -> tuple[list[list[Hit]], Spent]:
    """Return the hits of each vector, and what they took."""
    spent = Spent()
    request = kind.request
    if kind.filter is not None:
        where = condition_of(connection, kind.pipeline, kind.filter)
        request = replace(request, where=where, condition_name="the filter")
    try:
        found = search_together(connection, kind.pipeline, vectors, request, known, spent)
    finally:
        if request.where is not None:
            forget_what_was_set(connection)
    return found, spent
