"""The rate at which chunks are embedded: given by a person, or measured on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding import (
    DeviceThread,
    EmbeddingModel,
    Memory,
    ModelUse,
    ResolvedModel,
    keep_heap,
)
from pgqueue_embed.embedding.devices import describe_device

SECONDS = 5.0
# A portion has some batches, of chunks of all lengths.
PORTION_CHUNKS = 64


@dataclass(frozen=True, kw_only=True)
class ChunkRate:
    """Chunks a second, and `of` what or whom: ``this machine (cpu fp32)``."""

    chunks_per_second: float
    of: str


def measure_rate(
    resolved: ResolvedModel, use: ModelUse, chunks: Sequence[Chunk]
) -> ChunkRate | None:
    """Embed some of `chunks` as a worker on this machine does, for some seconds; None without any.

    Raises ModelError for a model that this machine cannot compute.
    """
    if not chunks:
        return None

    def load() -> EmbeddingModel:
        keep_heap()
        return EmbeddingModel.load(resolved, use=use, memory=Memory())

    with closing(DeviceThread(load)) as device:
        model = device.model
        # The first pass also pays for what a device prepares, and what is learnt once.
        device.embed(chunks[:PORTION_CHUNKS], anew=True)
        started, done = time.monotonic(), 0
        for start in range(0, len(chunks), PORTION_CHUNKS):
            portion = chunks[start : start + PORTION_CHUNKS]
            device.embed(portion, anew=True)
            done += len(portion)
            if time.monotonic() - started > SECONDS:
                break
        seconds = time.monotonic() - started
    return ChunkRate(
        chunks_per_second=done / seconds,
        of=f"this machine ({describe_device(model.device)}, {model.precision})",
    )
