"""A model that reads queries, as a device thread takes it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.chunking.encoding import unknown_id
from pgqueue_embed.embedding.model import EmbeddingModel, ReadVectors


class QueryModel:
    """An `EmbeddingModel` whose chunks are whole queries, read with the query prompt."""

    def __init__(self, model: EmbeddingModel) -> None:
        self.name = model.name
        self.dimensions = model.dimensions
        self.limits = model.limits
        self.chunks_in_fp32 = 0
        self._model = model

    @property
    def device(self) -> str:
        """The device in use."""
        return self._model.device

    @property
    def precision(self) -> str:
        """The precision in use."""
        return self._model.precision

    @property
    def passes_at_once(self) -> int:
        """How many batches the device computes at the same time."""
        return self._model.passes_at_once

    def session(self) -> AbstractContextManager[None]:
        """Surround all calls of one thread."""
        return self._model.session()

    def chunk(self, query: str) -> Chunk:
        """Return a query as one chunk; raises UsageError for one longer than the model reads."""
        return self._model.query_chunk(query)

    def sequence_tokens(self, chunk: Chunk) -> int:
        """Return the length of a query as the model reads it, or a little more."""
        return self._model.query_tokens(chunk)

    def unknown_share(self, query: str) -> float:
        """Return the share, 0 to 1, of the query's tokens that the model does not know."""
        ids = self._model.query_chunk(query).token_ids
        return float((ids == unknown_id(self._model.tokenizer)).mean()) if len(ids) else 0.0

    def launch(self, chunks: Sequence[Chunk], *, length: int | None = None) -> ReadVectors:
        """Start a batch of queries; call what it returns for the vectors."""
        return self._model.launch_queries(chunks, length=length)

    def verify(self, rows: int, length: int) -> None:
        """Compute known texts in a batch of this shape; raise WrongVectors if they differ."""
        self._model.verify(rows, length)
