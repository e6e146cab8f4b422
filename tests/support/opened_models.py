"""Models opened on the CPU, and what they read."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

from pgqueue_embed.chunking import Chunk, Chunker
from pgqueue_embed.embedding import EmbeddingModel, opening, resolve_model
from pgqueue_embed.embedding.light_network import LightNetwork


def load(folder: Path, *, precision: str | None = None, **options: Any) -> EmbeddingModel:
    """Open the model of a folder; `options` are those of `EmbeddingModel.load`.

    Without a precision as the reference, on whatever processor: vectors are compared with exact
    ones.
    """
    resolved = resolve_model(str(folder))
    if precision is None:
        return EmbeddingModel.reference(resolved, **options)
    return EmbeddingModel.load(resolved, device="cpu", precision=precision, **options)


def by_library() -> AbstractContextManager[Any]:
    """Let sentence-transformers open whatever is opened meanwhile."""
    return mock.patch.object(opening, "open_light", return_value=None)


def is_light(model: EmbeddingModel) -> bool:
    """Tell whether a model was opened without the library."""
    return isinstance(model._network, LightNetwork)


def chunks_of(model: EmbeddingModel, *documents: str, control_tokens: bool = False) -> list[Chunk]:
    """Return documents as a model reads them, in few chunks."""
    chunker = Chunker(
        model.tokenizer,
        max_tokens=model.content_budget,
        overlap_tokens=0,
        control_tokens=control_tokens,
    )
    return [chunk for document in chunker.chunk(documents) for chunk in document.chunks]
