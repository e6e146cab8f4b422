"""Queries that come together become one batch: while the device computes, the next ones gather.

A CPU computes a batch on each core, in rounds that begin and end by themselves: while the clients
of one are answered, and ask again, the others go on.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding import DeviceThread
from pgqueue_embed.embedding.query_model import QueryModel
from pgqueue_embed.errors import ModelError, PgembedError, RecordFault, UsageError
from pgqueue_embed.search_server.overload import MOST_TEXTS, Overloaded
from pgqueue_embed.vector_search.query_vector import check_query

# Of one request, and of all, in a round of the device: long lists let short ones by.
TEXTS_OF_A_REQUEST = 16
TEXTS_OF_A_ROUND = 64

# A batch of one takes a quarter of the time of a batch of 32. Where it did not pay to wait, it is
# tried with less, and never given up: other clients may come.
GATHER_SHARE = 0.25
LEAST_GATHER_SHARE = GATHER_SHARE / 4
MOST_GATHER_SECONDS = 0.1

CACHE_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Unit vectors of texts, float32 of shape (texts, dimensions), and how many tokens they have.

    `unknown_share`, 0 to 1, is how many of a single text's tokens the model does not know.
    """

    vectors: NDArray[np.float32]
    tokens: int
    unknown_share: float = 0.0


@dataclass(eq=False, kw_only=True)
class _Request:
    """The texts of one request, and the vectors of the first ones of them."""

    texts: Sequence[str]
    future: Future[Encoded] = field(default_factory=Future)
    taken: int = 0
    vectors: list[NDArray[np.float32]] = field(default_factory=list)
    tokens: int = 0

    @property
    def is_open(self) -> bool:
        return not self.future.done() and self.taken < len(self.texts)

    def succeed(self) -> None:
        encoded = Encoded(vectors=np.array(self.vectors), tokens=self.tokens)
        with suppress(InvalidStateError):  # its client has left
            self.future.set_result(encoded)

    def fail(self, error: Exception) -> None:
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True, kw_only=True)
class Gathering:
    """How many requests are expected for the next round, and which share of the last they may take.

    Clients that are answered together come back together, but for those that search in between.
    """

    expected: int = 1
    round_seconds: float = 0.0
    share: float = GATHER_SHARE

    @property
    def patience_seconds(self) -> float:
        """How long to wait for them."""
        return min(MOST_GATHER_SECONDS, self.share * self.round_seconds)

    def waited(self, before: int, after: int) -> Gathering:
        """Return what follows from a wait that found `before` requests, and ended with `after`."""
        missing = self.expected - before
        if missing <= 0:
            return self
        has_paid = 2 * (after - before) >= missing
        share = 2 * self.share if has_paid else self.share / 2
        return replace(self, share=min(GATHER_SHARE, max(LEAST_GATHER_SHARE, share)))


# The texts of each request that are computed together.
Round = dict[_Request, Sequence[str]]
Taken = list[tuple[_Request, Chunk]]


class QueryBatches:
    """Encodes queries by a model on its device thread; safe to use from many threads.

    A request that was cancelled is not computed any further. One that fails, fails alone.
    """

    def __init__(self, device: DeviceThread[QueryModel]) -> None:
        self._device = device
        self._model = device.model
        self._condition = threading.Condition()
        self._requests: deque[_Request] = deque()
        self._waiting_texts = 0
        self._computing = 0  # requests that are in a round
        self._is_closed = False
        self._gatherings = [Gathering() for _ in range(self._model.passes_at_once)]
        self._threads = [
            threading.Thread(
                target=self._run, args=(number,), name=f"pgembed-queries-{number}", daemon=True
            )
            for number in range(len(self._gatherings))
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, texts: Sequence[str]) -> Future[Encoded]:
        """Return the vectors of `texts` once they are there; raises Overloaded.

        The future's error is a UsageError for a text that is empty or too long, or a ModelError.
        """
        request = _Request(texts=texts)
        with self._condition:
            if self._is_closed:
                raise ModelError("the server is being stopped")
            if self._waiting_texts + len(texts) > MOST_TEXTS:
                raise Overloaded
            self._waiting_texts += len(texts)
            self._requests.append(request)
            # What waits for the first one, or for as many as are expected, need not look at others.
            least = min(gathering.expected for gathering in self._gatherings)
            if len(self._requests) == 1 or len(self._requests) >= least:
                self._condition.notify_all()
        return request.future

    def unknown_share(self, text: str) -> float:
        """Return the share, 0 to 1, of a query's tokens that the model does not know."""
        return self._model.unknown_share(text)

    def close(self) -> None:
        """Stop the threads; what waits raises ModelError."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()
        self._device.close()
        for thread in self._threads:
            thread.join()
        for request in self._requests:
            request.fail(ModelError("the server is being stopped"))

    def _run(self, number: int) -> None:
        while (round_ := self._next_round(number)) is not None:
            started = time.monotonic()
            taken = self._as_chunks(round_)
            try:
                self._compute(taken)
            except Exception:  # noqa: BLE001 - whose fault it is comes out alone
                self._compute_alone(taken)
            self._end_round(number, round_, time.monotonic() - started)

    def _next_round(self, number: int) -> Round | None:
        """Return what is to be computed next; None once all is over."""
        with self._condition:
            while not self._is_closed:
                self._condition.wait_for(partial(self._has_gathered, 1))
                before, gathering = len(self._requests), self._gatherings[number]
                self._condition.wait_for(
                    partial(self._has_gathered, gathering.expected), gathering.patience_seconds
                )
                after = len(self._requests)
                if taken := self._taken():  # another one may have taken them all
                    self._gatherings[number] = gathering.waited(before, after)
                    return taken
        return None

    def _has_gathered(self, requests: int) -> bool:
        return len(self._requests) >= requests or self._is_closed

    def _taken(self) -> Round:
        """Take what waits, or the share of a round in all that waits and is computed."""
        known = len(self._requests) + self._computing
        taken: Round = {}
        texts = 0
        for _ in range(min(len(self._requests), -(-known // len(self._gatherings)))):
            if texts >= TEXTS_OF_A_ROUND:
                break
            request = self._requests.popleft()
            if found := self._take(request):
                taken[request] = found
            texts += len(found)
        self._computing += len(taken)
        return taken

    def _end_round(self, number: int, round_: Round, seconds: float) -> None:
        """Expect those that were answered again, with those that have gathered meanwhile.

        Of a long request, the next texts are behind the others then.
        """
        with self._condition:
            self._computing -= len(round_)
            more = [request for request in round_ if request.taken < len(request.texts)]
            self._requests += more
            if more:
                self._condition.notify_all()
            waiting = -(-len(self._requests) // len(self._gatherings))
            self._gatherings[number] = replace(
                self._gatherings[number], expected=len(round_) + waiting, round_seconds=seconds
            )

    def _take(self, request: _Request) -> Sequence[str]:
        """Take the next texts of a request; none of one that has been answered."""
        if not request.is_open:
            self._waiting_texts -= len(request.texts) - request.taken
            return []
        texts = request.texts[request.taken : request.taken + TEXTS_OF_A_REQUEST]
        request.taken += len(texts)
        self._waiting_texts -= len(texts)
        return texts

    def _as_chunks(self, round_: Round) -> Taken:
        chunks: Taken = []
        for request, texts in round_.items():
            try:
                chunks += [(request, self._chunk(text)) for text in texts]
            except Exception as error:  # noqa: BLE001 - it is the request's
                request.fail(error)
        return [(request, chunk) for request, chunk in chunks if not request.future.done()]

    def _chunk(self, text: str) -> Chunk:
        check_query(text)
        return self._model.chunk(text)

    def _compute(self, taken: Taken) -> None:
        if not taken:
            return
        vectors = self._device.embed([chunk for _, chunk in taken]).vectors
        for (request, chunk), vector in zip(taken, vectors, strict=True):
            request.vectors.append(vector)
            request.tokens += self._model.sequence_tokens(chunk)
        for request in {id(request): request for request, _ in taken}.values():
            if len(request.vectors) == len(request.texts):
                request.succeed()

    def _compute_alone(self, taken: Taken) -> None:
        for each in taken:
            if each[0].future.done():
                continue
            try:
                self._compute([each])
            except RecordFault as error:
                each[0].fail(UsageError(f"the model has no vector for the query: {error}"))
            except PgembedError as error:
                each[0].fail(error)
            except Exception as error:  # noqa: BLE001 - torch has many
                each[0].fail(ModelError(f"the model fails: {error}"))
