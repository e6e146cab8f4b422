"""The models of the pipelines, each loaded once and owned by one thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from pgqueue_embed.embedding import DeviceThread, EmbeddingModel, ModelUse, ResolvedModel, keep_heap
from pgqueue_embed.embedding.query_model import QueryModel
from pgqueue_embed.embedding.rows import first_dimensions
from pgqueue_embed.errors import PgembedError
from pgqueue_embed.log import get_logger
from pgqueue_embed.pipeline.model import check_local_model, use_of, use_of_options
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.search_server.query_batches import CACHE_BYTES, Encoded, QueryBatches
from pgqueue_embed.vector_search.query_vector import MOST_MODELS, check_query, encoder_of

# A model that this machine lacks is not looked for at each request.
RECHECK_SECONDS = 10.0

ModelKey = tuple[str, ModelUse]


class Encoder(Protocol):
    """What gives the vectors of queries."""

    async def encode(self, pipeline: Pipeline, texts: Sequence[str]) -> Encoded:
        """Return the unit vectors of queries by the pipeline's own model and dimensions."""


class DirectEncoder:
    """Encodes one query after the other, for one client: what a search of its own does."""

    async def encode(self, pipeline: Pipeline, texts: Sequence[str]) -> Encoded:
        """Return the vectors, as the encoder of `pgembed search` makes them."""
        return await asyncio.to_thread(self._encode, pipeline, texts)

    def _encode(self, pipeline: Pipeline, texts: Sequence[str]) -> Encoded:
        import numpy as np

        for text in texts:
            check_query(text)
        encoder = encoder_of(pipeline)
        vectors = [encoder.encode(text, pipeline.spec.truncate_dim) for text in texts]
        return Encoded(vectors=np.array(vectors), tokens=0)


@dataclass(frozen=True)
class _Failure:
    """A model that cannot be had, and when that was seen."""

    error: PgembedError
    seen_monotonic: float


class WarmEncoders:
    """Models in fp32 on `device`, at most MOST_MODELS at a time, whose queries are batched.

    In fp32, since a search that asks here finds what it would find by itself.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._lock = threading.Lock()
        self._batches: OrderedDict[ModelKey, QueryBatches] = OrderedDict()
        self._failures: dict[ModelKey, _Failure] = {}

    async def encode(self, pipeline: Pipeline, texts: Sequence[str]) -> Encoded:
        """Return the vectors of queries; raises Overloaded, UsageError or ModelError."""
        batches = self._loaded((pipeline.model_fingerprint, use_of(pipeline.spec)))
        if batches is None:
            batches = await asyncio.to_thread(self.load, pipeline)
        encoded = await asyncio.wrap_future(batches.submit(texts))
        return _cut(encoded, pipeline.spec.truncate_dim)

    async def encode_if_loaded(
        self, fingerprint: str, use: Mapping[str, Any], truncate_dim: int | None, query: str
    ) -> Encoded | None:
        """Return the vector of a query, or None where no such model is at hand."""
        batches = self._loaded((fingerprint, use_of_options(use)))
        if batches is None:
            return None
        encoded = await asyncio.wrap_future(batches.submit([query]))
        cut = _cut(encoded, truncate_dim)
        share = batches.unknown_share(query)
        return Encoded(vectors=cut.vectors, tokens=cut.tokens, unknown_share=share)

    def load(self, pipeline: Pipeline) -> QueryBatches:
        """Load the pipeline's model unless it is at hand; raises ModelMismatch or ModelError."""
        # Under the lock, so that many first requests at once load the model once.
        with self._lock:
            key = (pipeline.model_fingerprint, use_of(pipeline.spec))
            failure = self._failures.get(key)
            if failure and time.monotonic() - failure.seen_monotonic < RECHECK_SECONDS:
                raise failure.error
            found = self._batches.get(key)
            if found is None:
                found = self._batches[key] = self._load(key, pipeline)
                self._forget_more_than_fit()
            return found

    def close(self) -> None:
        """Stop all threads; what waits raises ModelError."""
        with self._lock:
            for batches in self._batches.values():
                batches.close()
            self._batches.clear()

    def _loaded(self, key: ModelKey) -> QueryBatches | None:
        found = self._batches.get(key)
        if found is not None:
            self._batches.move_to_end(key)
        return found

    def _load(self, key: ModelKey, pipeline: Pipeline) -> QueryBatches:
        try:
            resolved = check_local_model(pipeline)
            device = DeviceThread(
                partial(open_model, resolved, key[1], self._device), cache_bytes=CACHE_BYTES
            )
            return QueryBatches(device)
        except PgembedError as error:
            self._failures[key] = _Failure(error, time.monotonic())
            raise

    def _forget_more_than_fit(self) -> None:
        while len(self._batches) > MOST_MODELS:
            _, forgotten = self._batches.popitem(last=False)
            forgotten.close()


def open_model(resolved: ResolvedModel, use: ModelUse, device: str) -> QueryModel:
    """Load a model in fp32, to read queries; to be called on the device thread."""
    keep_heap()
    model = EmbeddingModel.load(resolved, device=device, precision="fp32", use=use)
    get_logger().info(
        "model loaded", model=model.name, device=model.device, computes=str(model.choice)
    )
    return QueryModel(model)


def _cut(encoded: Encoded, truncate_dim: int | None) -> Encoded:
    if truncate_dim is None:
        return encoded
    vectors = first_dimensions(encoded.vectors, truncate_dim)
    return Encoded(vectors=vectors, tokens=encoded.tokens)
