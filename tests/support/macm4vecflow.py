"""Chunks as MacM4VecFlow stores them, to be embedded by sentence-transformers' `encode`."""

from __future__ import annotations

import re
from typing import Any

CHUNK_TOKENS = 128
OVERLAP_TOKENS = 20


def chunks_of(tokenizer: Any, text: str) -> list[str]:
    """Return the texts stored for `text`: sentences in groups, their tokens decoded.

    Lower case, in ``[CLS] … [SEP]``, with what decoding makes of punctuation; a sentence longer
    than a chunk is cut into windows of its tokens.
    """
    chunks: list[str] = []
    group: list[str] = []
    group_tokens = 0
    flat = text.replace("\r", " ").replace("\t", " ")
    for sentence in filter(None, map(str.strip, re.split(r"(?<=[.!?])\s+", flat))):
        ids = tokenizer.encode(sentence, verbose=False)
        if len(ids) > CHUNK_TOKENS:
            chunks += _decoded(tokenizer, group)
            group, group_tokens = [], 0
            step = CHUNK_TOKENS - OVERLAP_TOKENS
            windows = range(0, len(ids), step)
            chunks += [tokenizer.decode(ids[start : start + CHUNK_TOKENS]) for start in windows]
            continue
        if group_tokens + len(ids) > CHUNK_TOKENS:
            chunks += _decoded(tokenizer, group)
            group, group_tokens = [], 0
        group.append(sentence)
        group_tokens += len(ids)
    return chunks + _decoded(tokenizer, group)


def _decoded(tokenizer: Any, sentences: list[str]) -> list[str]:
    if not sentences:
        return []
    return [tokenizer.decode(tokenizer.encode(" ".join(sentences), verbose=False))]
