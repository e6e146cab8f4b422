"""A device for a pipeline that keeps only the first dimensions of its model's vectors.

Pipelines of one model share the device and its cache, which hold whole vectors, whatever of them
each pipeline keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.claim.embed import Device, Progress
from pgqueue_embed.embedding.rows import Vectors, first_dimensions
from pgqueue_embed.pipeline.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class _Truncated:
    """See embed.EmbeddedChunks."""

    vectors: Vectors
    cache_hits: int
    device_seconds: float
    fp32_chunks: int


@dataclass(frozen=True, kw_only=True)
class TruncatingDevice:
    """Fulfils embed.Device with the first `dimensions` of the vectors of `device`."""

    device: Device
    dimensions: int

    def embed(
        self, chunks: Sequence[Chunk], *, on_progress: Progress, anew: bool = False
    ) -> _Truncated:
        """Return shortened vectors of unit norm; raises RecordFault where nothing is left."""
        embedded = self.device.embed(chunks, on_progress=on_progress, anew=anew)
        return _Truncated(
            vectors=first_dimensions(embedded.vectors, self.dimensions),
            cache_hits=embedded.cache_hits,
            device_seconds=embedded.device_seconds,
            fp32_chunks=embedded.fp32_chunks,
        )

    def verify(self) -> None:
        self.device.verify()

    def stalled_seconds(self) -> float:
        return self.device.stalled_seconds()


def device_for(pipeline: Pipeline, device: Device) -> Device:
    """Return `device`, or one that gives what `pipeline` keeps of its vectors."""
    if pipeline.truncate_dim is None:
        return device
    return TruncatingDevice(device=device, dimensions=pipeline.truncate_dim)
