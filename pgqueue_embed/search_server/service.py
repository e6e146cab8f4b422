"""The service behind every door of the server: pipelines, hits, records, vectors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from pgqueue_embed.db import applications
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import (
    NotFound,
    PgembedError,
    PipelineFault,
    PipelineReplaced,
    RoleFault,
    SetupError,
    UsageError,
)
from pgqueue_embed.log import get_logger
from pgqueue_embed.pipeline.catalog import load_pipelines, no_pipeline
from pgqueue_embed.pipeline.model import use_of
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.search_server.encoders import Encoder, WarmEncoders
from pgqueue_embed.search_server.query_batches import Encoded
from pgqueue_embed.search_server.search_rounds import SearchRounds
from pgqueue_embed.vector_search.asked import TRIES
from pgqueue_embed.vector_search.hit import Hit
from pgqueue_embed.vector_search.hit_json import reads_exactly
from pgqueue_embed.vector_search.query import CONDITION_SECONDS
from pgqueue_embed.vector_search.record import StoredChunk, read_record
from pgqueue_embed.vector_search.request import SearchRequest
from pgqueue_embed.vector_search.rights import naming_missing_rights
from pgqueue_embed.vector_search.sessions import MOST_SESSIONS, Sessions

# Chunks of one search: what is shown to a person or a program, and no export of the table.
MOST_HITS = 1_000
MOST_OFFSET = 10_000

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search for `query`, as a client asks for it; `filter` is that of pgembed.search."""

    pipeline: str
    query: str
    request: SearchRequest
    filter: Mapping[str, Any] | None = None

    def check(self) -> None:
        """Raise UsageError for what no search can be."""
        self.request.check()
        if self.request.limit > MOST_HITS:
            raise UsageError(f"limit {self.request.limit}: give at most {MOST_HITS:,}")
        if self.request.offset > MOST_OFFSET:
            raise UsageError(f"offset {self.request.offset}: give at most {MOST_OFFSET:,}")
        if self.filter is not None and self.request.where is not None:
            raise UsageError("filter and where: give one of them")


class SearchService:
    """Searches the pipelines called `names`, or all, by an encoder, over a few sessions."""

    def __init__(self, conninfo: str, encoder: Encoder, names: Sequence[str] = ()) -> None:
        self._encoder = encoder
        self._names = tuple(names)
        self._sessions = Sessions(
            conninfo,
            application_name=applications.SERVE,
            patience_seconds=CONDITION_SECONDS,
            opened=reads_exactly,
        )
        self._executor = ThreadPoolExecutor(MOST_SESSIONS, thread_name_prefix="pgembed-session")
        self._rounds = SearchRounds(self._sessions, self._executor)
        self._known = self._sessions.known
        self._loading = asyncio.Lock()

    async def pipelines(self, *, anew: bool = False) -> list[Pipeline]:
        """Return the pipelines that are served, as they are now, or were a moment ago."""
        if anew:
            return await self._in_session(self._load)
        # One loads for all who ask meanwhile.
        async with self._loading:
            found = self._known.pipelines()
            return await self._in_session(self._load) if found is None else found

    async def pipeline(self, name: str) -> Pipeline:
        """Return the pipeline called `name`; raises NotFound."""
        found = {each.name: each for each in await self.pipelines()}
        if name not in found:
            found = {each.name: each for each in await self.pipelines(anew=True)}
        if name not in found:
            raise NotFound(no_pipeline(name, list(found), " here"))
        return found[name]

    async def find(self, search: Search) -> list[Hit]:
        """Return the hits of a search, best first; raises PgembedError or psycopg.Error."""
        search.check()
        return await self._retried(search.pipeline, partial(self._found, search))

    async def _found(self, search: Search, pipeline: Pipeline) -> list[Hit]:
        encoded = await self._encoder.encode(pipeline, [search.query])
        return await self._rounds.find(pipeline, encoded.vectors[0], search.request, search.filter)

    async def _retried(self, name: str, read: Callable[[Pipeline], Awaitable[Answer]]) -> Answer:
        """Return what is read of a pipeline as it is, whichever generation that is by now."""
        for tries_left in reversed(range(TRIES)):
            pipeline = await self.pipeline(name)
            try:
                return await read(pipeline)
            except PipelineReplaced:
                self._known.forget()
                if not tries_left:
                    raise
        raise AssertionError("the last try returns or raises")

    async def record(self, name: str, key: str) -> list[StoredChunk]:
        """Return the stored chunks of a record, in order; none without it.

        Raises SetupError where the target cannot be read, UsageError for what can be no key.
        """
        return await self._retried(name, lambda pipeline: self._record(pipeline, key))

    async def _record(self, pipeline: Pipeline, key: str) -> list[StoredChunk]:
        try:
            return await self._in_session(partial(read_record, pipeline=pipeline, key=key))
        except RoleFault:
            raise
        except PipelineFault as error:
            kind = SetupError if error.is_of_the_table else UsageError
            raise kind(str(error)) from None

    async def encode(self, pipeline: Pipeline, texts: Sequence[str]) -> Encoded:
        """Return the vectors of queries by a pipeline's model."""
        return await self._encoder.encode(pipeline, texts)

    async def of_model(self, name: str) -> Pipeline:
        """Return a pipeline by its name, or by that of its model where that says enough.

        Raises NotFound for any other model, and UsageError where pipelines use it in
        different ways.
        """
        found = await self.pipelines()
        by_name = [each for each in found if each.name == name]
        fitting = by_name or [each for each in found if each.model == name]
        if not fitting:
            known = ", ".join(each.name for each in found) or "none yet"
            raise NotFound(
                f"there is no model '{name}' here; give the name of a pipeline, whose model is"
                f" used: {known}"
            )
        ways = {(each.model_fingerprint, use_of(each.spec), each.dimensions) for each in fitting}
        if len(ways) > 1:
            names = ", ".join(each.name for each in fitting)
            raise UsageError(
                f"pipelines {names} use {name} in different ways; give the name of one as the model"
            )
        return fitting[0]

    def check(self) -> None:
        """Raise PgembedError where the database, or a pipeline that was named, is not there."""
        self._sessions.run(self._load)

    def warm(self, encoders: WarmEncoders) -> None:
        """Load the models; raises PgembedError where a pipeline that was named has none here."""
        for pipeline in self._sessions.run(self._load):
            try:
                encoders.load(pipeline)
            except PgembedError as error:
                if self._names:
                    raise
                get_logger().warning(
                    "pipeline cannot be searched here", pipeline=pipeline.name, reason=str(error)
                )

    def close(self) -> None:
        """End the sessions and their threads."""
        self._sessions.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _load(self, connection: Connection) -> list[Pipeline]:
        with naming_missing_rights(connection):
            found = load_pipelines(connection, self._names)
        self._known.note(found)
        return found

    async def _in_session(self, work: Callable[[Connection], Answer]) -> Answer:
        return await self._sessions.awaited(work, self._executor)
