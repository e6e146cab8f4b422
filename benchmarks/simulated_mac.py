"""A simulated Mac: the real loops against the real database, with a device that sleeps.

`python -m benchmarks.simulated_mac CONNINFO CHUNKS_PER_SECOND CLAIM_SECONDS`, ended by SIGTERM.
It imports no torch, and it cuts texts by characters: a Mac's own processor would tokenise, and
not this one, which sixteen of them share with the database.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from pgqueue_embed.chunking import Chunk, ChunkedDocument, Context
from pgqueue_embed.db.session import connect
from pgqueue_embed.embedding import Embedded
from pgqueue_embed.log import LogSettings
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.worker.loop import Shared, run_loop
from pgqueue_embed.worker.registry import WorkerIdentity, register
from pgqueue_embed.worker.settings import WorkerSettings
from tests.support.fakes import FixedPipelines

CONCURRENCY = 2
DIMENSIONS = 384
CHUNK_CHARACTERS = 400
CHUNK_TOKENS = np.ones(100, np.int32)
BATCH_CHUNKS = 16


class SleepingDevice:
    """Fulfils embed.Device: one caller at a time, so many chunks a second and no faster."""

    def __init__(self, chunks_per_second: float) -> None:
        self._seconds = 1 / chunks_per_second
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def embed(
        self, chunks: Sequence[Chunk], *, on_progress: Callable[[], None], anew: bool = False
    ) -> Embedded:
        """Sleep for as long as a device of the fixed rate would compute; one batch at a time."""
        del anew  # nothing is kept from call to call
        for first in range(0, len(chunks), BATCH_CHUNKS):
            self._compute(len(chunks[first : first + BATCH_CHUNKS]))
            on_progress()
        shape = (len(chunks), DIMENSIONS)
        vectors = np.full(shape, DIMENSIONS**-0.5, np.float32)
        return Embedded(vectors=vectors, device_seconds=len(chunks) * self._seconds)

    def _compute(self, chunks: int) -> None:
        """Take the next free time of the device, so that late wake-ups do not slow it down."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + chunks * self._seconds
            free_at = self._free_at
        time.sleep(max(0.0, free_at - time.monotonic()))

    def verify(self) -> None:
        """It is never wrong."""

    def stalled_seconds(self) -> float:
        """It never hangs."""
        return 0.0


class CharacterChunker:
    """Fulfils embed.DocumentChunker at next to no cost."""

    def chunk(
        self,
        documents: Sequence[str],
        contexts: Sequence[Context] | None = None,
        *,
        on_progress: Callable[[], None] = lambda: None,
    ) -> list[ChunkedDocument]:
        """Cut each document after every 400 characters."""
        del contexts, on_progress
        return [self._chunk(document) for document in documents]

    def _chunk(self, document: str) -> ChunkedDocument:
        starts = range(0, len(document), CHUNK_CHARACTERS)
        texts = [document[start : start + CHUNK_CHARACTERS] for start in starts]
        chunks = tuple(
            Chunk(index=n, start=start, end=start + len(text), text=text, token_ids=CHUNK_TOKENS)
            for n, (start, text) in enumerate(zip(starts, texts, strict=True))
        )
        tokens = len(document) // 4
        return ChunkedDocument(chunks=chunks, inputs=chunks, tokens=tokens, unknown_tokens=0)


def main() -> None:
    """Work until told to stop."""
    conninfo, rate, claim_seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    LogSettings(level="warning").apply()
    with connect(conninfo) as connection:
        pipelines = [load_pipeline(connection, "reports")]
        identity = WorkerIdentity(
            device="sleep",
            precision="none",
            model="stub",
            concurrency=CONCURRENCY,
            pipeline_ids=[pipelines[0].id],
        )
        worker_id = register(connection, identity)
    chunker = CharacterChunker()
    shared = Shared.of(
        conninfo,
        WorkerSettings(concurrency=CONCURRENCY, claim_seconds=claim_seconds),
        worker_id=worker_id,
        device=SleepingDevice(rate),
        served=FixedPipelines(pipelines, chunker),
    )
    signal.signal(signal.SIGTERM, lambda *_: shared.shutdown.ask())
    loops = [threading.Thread(target=run_loop, args=(shared,)) for _ in range(CONCURRENCY)]
    for loop in loops:
        loop.start()
    for loop in loops:
        loop.join()


if __name__ == "__main__":
    main()
