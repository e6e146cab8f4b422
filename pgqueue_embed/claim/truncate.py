"""An embedder for a pipeline that keeps only the first dimensions of its model's vectors.

Pipelines of one model share the device and its cache, which hold whole vectors, whatever of them
each pipeline keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.claim.embed import Embedder, OnProgress
from pgqueue_embed.embedding import Embedded
from pgqueue_embed.embedding.rows import first_dimensions
from pgqueue_embed.pipeline.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class TruncatingEmbedder:
    """Fulfils embed.Embedder with the first `dimensions` of the vectors of `embedder`."""

    embedder: Embedder
    dimensions: int

    def embed(
        self, chunks: Sequence[Chunk], *, on_progress: OnProgress, anew: bool = False
    ) -> Embedded:
        """Return shortened vectors of length 1; raises RecordFault where nothing is left."""
        embedded = self.embedder.embed(chunks, on_progress=on_progress, anew=anew)
        return replace(embedded, vectors=first_dimensions(embedded.vectors, self.dimensions))


def truncating(pipeline: Pipeline, embedder: Embedder) -> Embedder:
    """Return `embedder`, or one that gives what `pipeline` keeps of its vectors."""
    if pipeline.spec.truncate_dim is None:
        return embedder
    return TruncatingEmbedder(embedder=embedder, dimensions=pipeline.spec.truncate_dim)
