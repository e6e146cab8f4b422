"""What the device thread does with one batch: check its shape, run it, halve it if need be."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding.devices import is_out_of_memory, kind_of, release_memory
from pgqueue_embed.embedding.rows import NonFiniteVectors, Vectors
from pgqueue_embed.embedding.shapes import Batch, limits_for
from pgqueue_embed.errors import ModelError

VERIFY_EVERY_BATCHES = 500

Rows = tuple[int, ...]


class Model(Protocol):
    """What the device thread needs of an `EmbeddingModel`."""

    name: str
    device: str
    dimensions: int

    def session(self) -> AbstractContextManager[None]:
        """Surround all calls of one thread."""

    def sequence_tokens(self, chunk: Chunk) -> int:
        """Return the length of a chunk as the model reads it."""

    def forward(self, chunks: Sequence[Chunk], *, length: int | None = None) -> Vectors:
        """Embed one batch, padded to ``length`` tokens."""

    def verify(self, rows: int, length: int) -> None:
        """Raise WrongVectors if the device computes this shape wrong."""


class BatchRunner:
    """Runs batches on the device; ``limits`` shrink when its memory is too small for them."""

    def __init__(self, model: Model) -> None:
        self.limits = limits_for(kind_of(model.device))
        self._model = model
        self._batches = 0
        self._verified: set[tuple[int, int]] = set()

    def run(self, chunks: Sequence[Chunk], batch: Batch) -> Iterator[tuple[Rows, Vectors | None]]:
        """Yield rows of the batch and their vectors after each pass of the device.

        None instead of vectors marks rows for which the model has no usable vector. Raises
        ModelError if the device's memory does not hold a single row.
        """
        parts = deque([batch.rows])
        while parts:
            rows = parts.popleft()
            size = self.limits.rows_at(batch.length)
            if len(rows) > size:
                parts.extendleft((rows[size:], rows[:size]))
                continue
            try:
                vectors = self._forward(chunks, rows, batch.length)
            except NonFiniteVectors as fault:
                bad = {rows[position] for position in fault.rows}
                yield tuple(sorted(bad)), None
                parts.extendleft(_without(rows, bad))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink(len(rows), batch.length, error)
                parts.appendleft(rows)
            else:
                yield rows, vectors

    def _forward(self, chunks: Sequence[Chunk], rows: Rows, length: int) -> Vectors:
        self._verify(len(rows), length)
        self._batches += 1
        return self._model.forward([chunks[row] for row in rows], length=length)

    def _verify(self, rows: int, length: int) -> None:
        """Check a shape when it is new, and any shape from time to time; a CPU needs neither."""
        if kind_of(self._model.device) == "cpu":
            return
        if (rows, length) in self._verified and self._batches % VERIFY_EVERY_BATCHES:
            return
        self._model.verify(rows, length)
        self._verified.add((rows, length))

    def _shrink(self, rows: int, length: int, error: Exception) -> None:
        if rows == 1:
            raise ModelError(
                f"the memory of {self._model.device} does not hold one sequence of {length} "
                f"tokens with model {self._model.name}: {str(error).splitlines()[0]}"
            ) from error
        release_memory(self._model.device)
        self.limits = self.limits.halved(rows, length)


def _without(rows: Rows, bad: set[int]) -> list[Rows]:
    """Put a good row in the place of each bad one, so that the shape stays; [] if none is."""
    good = [row for row in rows if row not in bad]
    return [tuple(good[0] if row in bad else row for row in rows)] if good else []
