"""Vectors of chunks, as a device gives them back."""

from __future__ import annotations

from dataclasses import dataclass

from pgqueue_embed.embedding.rows import Vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """``vectors`` are float32, of shape (chunks, dimensions) and length 1, in the chunks' order.

    ``cache_hits`` counts chunks that needed no computing, since this process had embedded their
    text before or it occurs twice in the call, and ``reused`` those whose vectors were stored.
    ``fp32_chunks`` are those that a lower precision had no vector for. ``device_seconds`` is the
    time that the device spent on this call.
    """

    vectors: Vectors
    cache_hits: int = 0
    reused: int = 0
    fp32_chunks: int = 0
    device_seconds: float = 0.0
