"""A model whose vectors are hashes of texts, and a device thread around it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding import DeviceThread
from pgqueue_embed.embedding.rows import Vectors, WrongVectors, unit_rows
from pgqueue_embed.embedding.shapes import limits_for

WAIT_SECONDS = 20.0
Hook = Callable[[Sequence[Chunk], int], None]


def chunk(text: str, tokens: int = 10) -> Chunk:
    return Chunk(
        index=0, start=0, end=len(text), text=text, token_ids=np.arange(tokens, dtype=np.int32)
    )


def chunks(prefix: str, count: int, tokens: int = 10) -> list[Chunk]:
    return [chunk(f"{prefix}{n}", tokens) for n in range(count)]


def vector_of(text: str) -> np.ndarray:
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    return digest.astype(np.float32) + 1


class FakeModel:
    """Vectors from hashes of texts; ``hook`` sees each batch first and may raise or wait."""

    name = "fake"
    dimensions = 32
    precision = "fp32"
    chunks_in_fp32 = 0
    passes_at_once = 1

    def __init__(self, hook: Hook | None = None, device: str = "cpu") -> None:
        self.device = device
        self.limits = limits_for(device)
        if device == "cpu":
            self.limits = self.limits.resized(1_024)  # which calls of tests were sized by
        self.hook = hook
        self.events: list[str] = []
        self.batches: list[tuple[list[str], int]] = []
        self.verified: list[tuple[int, int]] = []
        self.wrong = False
        self.threads: set[str] = set()

    def session(self) -> AbstractContextManager[None]:
        return nullcontext()

    def sequence_tokens(self, chunk: Chunk) -> int:
        return len(chunk.token_ids) + 2

    def launch(
        self, chunks: Sequence[Chunk], *, length: int | None = None
    ) -> Callable[[], Vectors]:
        assert length is not None
        self.threads.add(threading.current_thread().name)
        if self.hook:
            self.hook(chunks, length)
        self.events.append("launch")
        self.batches.append(([chunk.text for chunk in chunks], length))
        raw = np.array([vector_of(chunk.text) for chunk in chunks])
        raw[[chunk.text.startswith("bad") for chunk in chunks]] = np.nan
        return lambda: self._read(raw)

    def _read(self, raw: np.ndarray) -> Vectors:
        self.events.append("read")
        return unit_rows(raw)

    def verify(self, rows: int, length: int) -> None:
        self.verified.append((rows, length))
        if self.wrong:
            raise WrongVectors("wrong")


@contextmanager
def running(model: FakeModel) -> Iterator[DeviceThread[FakeModel]]:
    thread = DeviceThread(lambda: model)
    try:
        yield thread
    finally:
        thread.close()


def assert_right(vectors: Vectors, wanted: Sequence[Chunk]) -> None:
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, unit_rows(np.array([vector_of(c.text) for c in wanted])))
