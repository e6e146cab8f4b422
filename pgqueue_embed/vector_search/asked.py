"""A search from words to hits: what is read and what is computed, in order.

Who runs it knows how: on a session or a program's own connection, here or in another thread.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias
from weakref import WeakSet

from numpy.typing import NDArray

from pgqueue_embed.db.migrate import schema_checked
from pgqueue_embed.db.steps import AnyConnection, Steps
from pgqueue_embed.embedding.cross_encoder import cross_encoder
from pgqueue_embed.embedding.devices import check_device
from pgqueue_embed.errors import PipelineReplaced, UsageError
from pgqueue_embed.pipeline.catalog import called, pipelines_read
from pgqueue_embed.pipeline.option import check_type
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search.hit import Hit
from pgqueue_embed.vector_search.known import Known
from pgqueue_embed.vector_search.near import LikeRecord, Near, checked_vector
from pgqueue_embed.vector_search.order import Score, in_better_order, wanted_to_order
from pgqueue_embed.vector_search.query import nearest
from pgqueue_embed.vector_search.query_vector import check_query, encoder_of
from pgqueue_embed.vector_search.request import SearchRequest
from pgqueue_embed.vector_search.rights import OWN_TABLES, with_rights_named

# A switch of generations in the midst of a search is met again by none of the next tries.
TRIES = 3


@dataclass(frozen=True)
class Read:
    """What is read in one transaction: `steps`, of the connection that it is on."""

    steps: Callable[[AnyConnection], Steps[Any]]


@dataclass(frozen=True)
class Compute:
    """What takes the processor, and none of the database."""

    work: Callable[[], Any]


SearchPlan: TypeAlias = Generator[Read | Compute, Any, list[Hit]]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A search for one of `query`, in words, a `vector` of the pipeline's, or the like of `record`.

    `record` is a key, in its own type or as text.
    """

    request: SearchRequest
    query: str | None = None
    vector: Sequence[float] | NDArray[Any] | None = None
    record: Any = None
    rerank: str | None = None
    device: str = "auto"

    def check(self) -> None:
        """Raise UsageError for what no search can be."""
        given = [each is not None for each in (self.query, self.vector, self.record)]
        if sum(given) != 1:
            raise UsageError(
                "search for words (query), for a vector or for a record: give one of them"
            )
        if self.query is not None:
            check_query(self.query)
        elif self.rerank is not None:
            raise UsageError("--rerank compares a query in words with the chunks; give a query")
        if self.rerank is not None:
            check_type("--rerank", self.rerank, str)
        check_type("--device", self.device, str)
        check_device(self.device)
        self.request.check()

    def near(self, pipeline: Pipeline) -> Near:
        """Return what is searched near to; raises ModelError where words cannot be encoded."""
        if self.record is not None:
            return LikeRecord(self.record)
        if self.vector is not None:
            return checked_vector(pipeline, self.vector)
        return encoder_of(pipeline).encode(str(self.query), pipeline.spec.truncate_dim)

    def score(self) -> Score | None:
        """Return what orders the hits anew, if anything; raises ModelError without the model."""
        if self.rerank is None:
            return None
        return partial(cross_encoder(self.rerank, self.device).scores, str(self.query))


def search_plan(name: str, asked: Asked, known: Known) -> SearchPlan:
    """Return how the pipeline called `name` is searched, from what is `known` on.

    Raises PgembedError.
    """
    asked.check()
    score = yield Compute(asked.score)
    wanted = wanted_to_order(asked.request, score)
    for tries_left in reversed(range(TRIES)):
        pipeline = known.pipeline(name)
        if pipeline is None:
            pipeline = yield Read(partial(pipeline_read, name=name, known=known))
        near = yield Compute(partial(asked.near, pipeline))
        try:
            search = partial(nearest, pipeline=pipeline, near=near, request=wanted, known=known)
            found = yield Read(search)
            hits: list[Hit] = yield Compute(partial(in_better_order, found, asked.request, score))
            return hits
        except PipelineReplaced:
            known.forget()
            if not tries_left:
                raise
    raise AssertionError("the last try returns or raises")


# Those whose database has this program's schema: it is looked at once a connection.
_checked: WeakSet[AnyConnection] = WeakSet()


def pipeline_read(connection: AnyConnection, name: str, known: Known) -> Steps[Pipeline]:
    """Read how all pipelines are set up, and return the one called `name`.

    Raises NotFound, MissingRight or MigrationError.
    """
    steps = _in_schema(connection)
    found = yield from with_rights_named(connection, OWN_TABLES, steps)
    known.note(found)
    [pipeline] = called([name], found, connection)
    return pipeline


def _in_schema(connection: AnyConnection) -> Steps[list[Pipeline]]:
    if connection not in _checked:
        yield from schema_checked(connection)
        _checked.add(connection)
    return (yield from pipelines_read())
