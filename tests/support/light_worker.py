"""A worker process whose model costs nothing: all of it is real but the model.

`python -m tests.support.light_worker` takes its orders from a supervisor, as the real one does, and
starts in half a second, since nothing in it needs torch.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding.rows import unit_rows
from pgqueue_embed.embedding.shapes import BatchLimits
from pgqueue_embed.worker import heartbeat, process, worker
from tests.support import fault_points
from tests.support.fakes import DIMENSIONS, FAKE_MODEL, NOT_A_NUMBER, POISON, tokenizer, unit_vector

# A document with this word ends the process, as a crash of a driver does.
EXITS = "EXITSPROCESS"
# As the kernel does to a process that takes all memory.
OUT_OF_MEMORY = "OUTOFMEMORY"
# A forward pass that never returns.
HANGS = "HANGSFOREVER"

# Seconds that the model takes for one batch of chunks.
SECONDS_VARIABLE = "PGEMBED_TEST_BATCH_SECONDS"


class LightModel:
    """Fulfils embedding.batch_runner.Model with the vectors of `fakes.unit_vector`."""

    name = FAKE_MODEL.name
    device = "cpu"
    precision = "fp32"
    chunks_in_fp32 = 0
    passes_at_once = 1
    canary_cosine = 1.0
    dimensions = DIMENSIONS
    limits = BatchLimits(max_tokens_per_batch=4_096, length_step=8, fill=False)

    def __init__(self) -> None:
        self.tokenizer = tokenizer()
        self._batch_seconds = float(os.environ.get(SECONDS_VARIABLE, "0"))

    def session(self) -> AbstractContextManager[None]:
        """Return nothing to prepare."""
        return nullcontext()

    def sequence_tokens(self, chunk: Chunk) -> int:
        """Return the length of a chunk as the model reads it."""
        return len(chunk.token_ids) + 2

    def launch(
        self, chunks: Sequence[Chunk], *, length: int | None = None
    ) -> Callable[[], NDArray[np.float32]]:
        """Compute unit vectors; raises, exits, dies or hangs where a text says so."""
        del length
        fault_points.reach("mid_embed")
        time.sleep(self._batch_seconds)
        for chunk in chunks:
            _strike(chunk.text)
        raw = np.array([unit_vector(chunk.text) for chunk in chunks])
        raw[[NOT_A_NUMBER in chunk.text for chunk in chunks]] = np.nan
        return lambda: unit_rows(raw)

    def verify(self, rows: int, length: int) -> None:
        """Find nothing wrong."""


def _strike(text: str) -> None:
    if POISON in text:
        raise ValueError("the light model chokes on this text")
    if EXITS in text:
        os._exit(3)
    if OUT_OF_MEMORY in text:
        os.kill(os.getpid(), signal.SIGKILL)
    if HANGS in text:
        threading.Event().wait()


@dataclass(frozen=True)
class LightChoice:
    """Fulfils models.ChosenModel."""

    key: str = FAKE_MODEL.fingerprint

    def load(self) -> LightModel:
        """Return the model."""
        return LightModel()


def prepare() -> None:
    """Put the light model into this process, and the fault that the environment asks for."""
    vars(worker)["choose_model"] = lambda _connection, _settings: LightChoice()
    heartbeat.HEARTBEAT_SECONDS = 0.5
    vars(heartbeat)["device_memory_bytes"] = lambda _device: 0  # the real one imports torch
    fault_points.install()


def main() -> None:
    """Work as ordered on standard input."""
    prepare()
    process.main()


if __name__ == "__main__":
    main()
