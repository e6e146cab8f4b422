"""Models opened on the CPU, and what they read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pgqueue_embed.chunking import Chunk, Chunker
from pgqueue_embed.embedding import EmbeddingModel, resolve_model


def load(folder: Path, **options: Any) -> EmbeddingModel:
    """Open the model of a folder; `options` are those of `EmbeddingModel.load`."""
    return EmbeddingModel.load(resolve_model(str(folder)), device="cpu", **options)


def chunks_of(model: EmbeddingModel, *documents: str, control_tokens: bool = False) -> list[Chunk]:
    """Return documents as a model reads them, in few chunks."""
    chunker = Chunker(
        model.tokenizer,
        max_tokens=model.content_budget,
        overlap_tokens=0,
        control_tokens=control_tokens,
    )
    return [chunk for document in chunker.chunk(documents) for chunk in document.chunks]
