"""Runs batches on the device thread: checks a shape, launches, reads back, halves on failure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding.batch_sizes import BatchSizes
from pgqueue_embed.embedding.devices import is_out_of_memory, kind_of, release_memory
from pgqueue_embed.embedding.reads import done_of
from pgqueue_embed.embedding.rows import NonFiniteVectors, Vectors
from pgqueue_embed.embedding.shapes import Batch, BatchLimits
from pgqueue_embed.errors import ModelError

VERIFY_EVERY_BATCHES = 500

# Some tenths of a second on a fast GPU, well below any lease on a slow one.
GPU_BATCHES_AHEAD = 4

RowNumbers = tuple[int, ...]


class Model(Protocol):
    """What the device thread needs of an `EmbeddingModel`."""

    name: str
    dimensions: int
    limits: BatchLimits
    chunks_in_fp32: int

    @property
    def device(self) -> str:
        """mps, cuda, cuda:N or cpu."""

    @property
    def precision(self) -> str:
        """fp32, fp16 or bf16."""

    @property
    def passes_at_once(self) -> int:
        """How many batches the device computes at the same time."""

    def session(self) -> AbstractContextManager[None]:
        """Surround all calls of one thread."""

    def sequence_tokens(self, chunk: Chunk) -> int:
        """Return the length of a chunk as the model reads it."""

    def launch(
        self, chunks: Sequence[Chunk], *, length: int | None = None
    ) -> Callable[[], Vectors]:
        """Start one batch, padded to ``length`` tokens; returns what reads its vectors."""

    def verify(self, rows: int, length: int) -> None:
        """Raise WrongVectors if the device computes this shape wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """A pass of the device under way over some rows of a batch; ``read`` waits for it."""

    rows: RowNumbers
    length: int
    read: Callable[[], Vectors]

    @property
    def done(self) -> Future[Any] | None:
        """What is done once a read waits for nothing; None where nothing but the read tells."""
        return done_of(self.read)


class BatchRunner:
    """Runs batches on the device; ``limits`` shrink when its memory is too small for them.

    Of a model whose batches have no size yet, they have room for the largest one that is tried, and
    the next call is planned in that which has its turn. ``batches_ahead`` should be
    launched before the first of them is read, so that a GPU has always something to do, and then
    ``reads_at_once`` be read: all of them where a read waits for whatever was launched.
    """

    def __init__(self, model: Model) -> None:
        sizes, start = model.limits.sizes_to_try, model.limits.max_tokens_per_batch
        self.limits = model.limits.settled(max((start, *sizes)))
        self._sizes = BatchSizes(sizes, first=start) if sizes else None
        kind = kind_of(model.device)
        self._at_once = model.passes_at_once
        # One more than are computed at once: it takes the place of the next that is done.
        on_cpu = self._at_once + 1 if self._at_once > 1 else 1
        self.batches_ahead = on_cpu if kind == "cpu" else GPU_BATCHES_AHEAD
        self.reads_at_once = self.batches_ahead if kind == "mps" else 1
        self._model = model
        self._batches = 0
        self._verified: set[tuple[int, int]] = set()

    def planned_for(self, tokens: int, *, beside: int = 0) -> BatchLimits:
        """Return the limits to plan the next call by, of so many tokens, in any thread.

        There are so many calls ``beside`` it, which have cores to themselves.
        """
        limits, sizes = self.limits, self._sizes
        most = limits.max_tokens_per_batch
        if sizes is not None:
            most = min(sizes.next, most)
        cores = self._at_once - beside
        if cores > 1:
            # A small call is parted, so that all cores have some of it.
            most = min(most, max(limits.batch_tokens or 1, -(-tokens // cores)))
        return limits.resized(most)

    def learn(self, batch_tokens: int, tokens: int, seconds: float) -> int | None:
        """Count what a call took, planned by a size; returns the best size once it is known."""
        if self._sizes is None:
            return None
        # A batch takes longer by as many as are computed beside it.
        self._sizes.took(batch_tokens, tokens, seconds * self._at_once)
        best = self._sizes.best
        if best is not None:
            self._sizes = None
            self.limits = self.limits.resized(min(best, self.limits.max_tokens_per_batch))
        return best

    def launch(self, chunks: Sequence[Chunk], batch: Batch) -> Iterator[Pass]:
        """Start and yield the passes of a batch: one, unless memory has grown too small for it.

        Raises ModelError if the device's memory does not hold a single row.
        """
        parts = deque([batch.rows])
        while parts:
            rows = parts.popleft()
            size = self.limits.rows_at(batch.length)
            if len(rows) > size:
                parts.extendleft((rows[size:], rows[:size]))
                continue
            try:
                read = self._start(chunks, rows, batch.length)
            except Exception as error:  # noqa: BLE001 - raised again unless it is out of memory
                self._shrink(len(rows), batch.length, error)
                parts.appendleft(rows)
            else:
                yield Pass(rows=rows, length=batch.length, read=read)

    def finish(
        self, chunks: Sequence[Chunk], launched: Pass
    ) -> Iterator[tuple[RowNumbers, Vectors | None]]:
        """Yield rows of a pass and their vectors, waiting for the device.

        None instead of vectors marks rows for which the model has no usable vector.
        """
        again: Sequence[RowNumbers] = ()
        try:
            yield launched.rows, launched.read()
        except NonFiniteVectors as fault:
            bad = {launched.rows[position] for position in fault.rows}
            yield tuple(sorted(bad)), None
            again = _without(launched.rows, bad)
        except Exception as error:  # noqa: BLE001 - raised again unless it is out of memory
            self._shrink(len(launched.rows), launched.length, error)
            again = [launched.rows]
        yield from self.run(chunks, [Batch(rows=rows, length=launched.length) for rows in again])

    def run(
        self, chunks: Sequence[Chunk], batches: Iterable[Batch]
    ) -> Iterator[tuple[RowNumbers, Vectors | None]]:
        """Launch batches and finish them, as many ahead as a worker's are."""
        ahead: deque[Sequence[Pass]] = deque()
        for batch in batches:
            ahead.append(list(self.launch(chunks, batch)))
            if len(ahead) == self.batches_ahead:
                yield from self._finish_first(chunks, ahead, self.reads_at_once)
        yield from self._finish_first(chunks, ahead, len(ahead))

    def _finish_first(
        self, chunks: Sequence[Chunk], ahead: deque[Sequence[Pass]], batches: int
    ) -> Iterator[tuple[RowNumbers, Vectors | None]]:
        for _ in range(batches):
            for launched in ahead.popleft():
                yield from self.finish(chunks, launched)

    def _start(
        self, chunks: Sequence[Chunk], rows: RowNumbers, length: int
    ) -> Callable[[], Vectors]:
        self._verify(len(rows), length)
        self._batches += 1
        return self._model.launch([chunks[row] for row in rows], length=length)

    def _verify(self, rows: int, length: int) -> None:
        """Check any shape of a GPU from time to time, and on Metal each one when it is new.

        Metal has given wrong numbers in some shapes only, and is given few; CUDA is given many.
        """
        kind = kind_of(self._model.device)
        is_due = self._batches % VERIFY_EVERY_BATCHES == 0
        is_new = kind == "mps" and (rows, length) not in self._verified
        if kind == "cpu" or not (is_due or is_new):
            return
        self._model.verify(rows, length)
        self._verified.add((rows, length))

    def _shrink(self, rows: int, length: int, error: Exception) -> None:
        """Allow half the rows after ``error`` if it says out of memory; raise it if not."""
        if not is_out_of_memory(error):
            raise error
        if rows == 1:
            raise ModelError(
                f"the memory of {self._model.device} does not hold one sequence of {length} "
                f"tokens with model {self._model.name}: {str(error).splitlines()[0]}"
            ) from error
        release_memory(self._model.device)
        if self._sizes is not None:
            self._sizes.does_not_fit(rows * length)
        self.limits = self.limits.halved(rows, length)


def _without(rows: RowNumbers, bad: set[int]) -> list[RowNumbers]:
    """Put a good row in the place of each bad one, so that the shape stays; [] if none is."""
    good = [row for row in rows if row not in bad]
    return [tuple(good[0] if row in bad else row for row in rows)] if good else []
