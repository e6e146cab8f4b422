"""A model that costs nothing, on the real device thread; and the loops that feed it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from benchmarks.ceiling import CHUNK_TOKENS, OVERLAP_TOKENS
from pgqueue_embed.chunking import Chunk, Chunker
from pgqueue_embed.claim.embed import Device
from pgqueue_embed.db.session import connect
from pgqueue_embed.embedding import DeviceThread, resolve_model
from pgqueue_embed.embedding.one_call import USUAL_RUNS, OneCall
from pgqueue_embed.embedding.rows import Vectors
from pgqueue_embed.embedding.shapes import limits_for
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL
from pgqueue_embed.worker.loop import Shared, run_loop
from pgqueue_embed.worker.settings import WorkerSettings
from tests.support.fakes import FixedPipelines

DIMENSIONS = 384
SPECIAL_TOKENS = 2
OPERATIONS = 100  # MiniLM's pass has about so many


class StubModel:
    """Fulfils batch_runner.Model: one constant unit vector for every chunk.

    ``kind`` is that of the device whose batches it is given.
    """

    name = "stub"
    device = "cpu"
    dimensions = DIMENSIONS
    precision = "fp32"
    chunks_in_fp32 = 0
    passes_at_once = 1
    canary_cosine = 1.0

    def __init__(self, kind: str = "mps") -> None:
        self.limits = limits_for(kind)
        # A chunk is read as at least a token, and two special ones.
        rows = self.limits.max_tokens_per_batch // (SPECIAL_TOKENS + 1)
        self._vectors = np.full((rows, DIMENSIONS), DIMENSIONS**-0.5, np.float32)

    @contextmanager
    def session(self) -> Iterator[None]:
        """Nothing to hold open."""
        yield

    def sequence_tokens(self, chunk: Chunk) -> int:
        """Return the length that MiniLM would read."""
        return len(chunk.token_ids) + SPECIAL_TOKENS

    def launch(
        self, chunks: Sequence[Chunk], *, length: int | None = None
    ) -> Callable[[], Vectors]:
        """Return what gives constants, shape (chunks, dimensions)."""
        return lambda: self._vectors[: len(chunks)]

    def verify(self, rows: int, length: int) -> None:
        """It is never wrong."""


def default_tokenizer() -> Tokenizer:
    """Return the default model's tokenizer, without truncation and padding."""
    path = resolve_model(DEFAULT_MODEL).path / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def default_chunker() -> Chunker:
    """Return the chunker of a worker with default settings."""
    return Chunker(default_tokenizer(), max_tokens=CHUNK_TOKENS, overlap_tokens=OVERLAP_TOKENS)


class PacedModel(StubModel):
    """Computes so many tokens a second, padding included, while the caller is free to go on.

    It has to be launched like a GPU: an operation begins when it has been called and the one before
    has ended. They are called one by one by Python, or all by one call of torch's.
    """

    def __init__(
        self, tokens_per_second: float, kind: str = "mps", *, in_one_call: bool = True
    ) -> None:
        super().__init__(kind)
        self.device = kind  # which is given some batches at once
        self.busy_seconds = 0.0
        self._seconds_per_token = 1 / tokens_per_second
        self._free_at = 0.0
        self._called = _in_one_call() if in_one_call else _by_operations()

    def launch(
        self, chunks: Sequence[Chunk], *, length: int | None = None
    ) -> Callable[[], Vectors]:
        """Return what waits for the constants until they would be there."""
        assert length is not None, "the device thread pads to a length"
        seconds = len(chunks) * length * self._seconds_per_token
        self.busy_seconds += seconds
        for _ in self._called():
            self._free_at = max(self._free_at, time.monotonic()) + seconds / OPERATIONS
        ready_at = self._free_at

        def read() -> Vectors:
            time.sleep(max(0.0, ready_at - time.monotonic()))
            return self._vectors[: len(chunks)]

        return read


def _by_operations() -> Callable[[], Iterator[None]]:
    import torch

    small = torch.zeros(1)

    def called() -> Iterator[None]:
        for _ in range(OPERATIONS):
            torch.add(small, 1)
            yield

    return called


def _in_one_call() -> Callable[[], Iterator[None]]:
    import torch

    def all_operations(weights: Mapping[str, Any], vectors: Any) -> Any:
        for _ in range(OPERATIONS):
            vectors = torch.add(vectors, 1)
        return vectors

    small, call = torch.zeros(1, 1), OneCall(all_operations)
    for _ in range(USUAL_RUNS):
        call({}, small)

    def called() -> Iterator[None]:
        call({}, small)
        yield from (None for _ in range(OPERATIONS))

    return called


def drain_with_stub(
    conninfo: str,
    concurrency: int,
    chunker: Chunker,
    load: Callable[[], StubModel] = StubModel,
) -> None:
    """Drain the queue by the real loops and the real device thread around a stub model."""
    with closing(DeviceThread(load)) as device:
        shared = _shared(conninfo, concurrency, chunker, device)
        loops = [threading.Thread(target=run_loop, args=(shared,)) for _ in range(concurrency)]
        for loop in loops:
            loop.start()
        for loop in loops:
            loop.join()
    if shared.shutdown.failure is not None:
        raise shared.shutdown.failure


def _shared(conninfo: str, concurrency: int, chunker: Chunker, device: Device) -> Shared:
    with connect(conninfo) as connection:
        pipelines = [load_pipeline(connection, "reports")]
    return Shared.of(
        conninfo,
        WorkerSettings(concurrency=concurrency, drain=True),
        worker_id=1,
        device=device,
        served=FixedPipelines(pipelines, chunker),
    )
