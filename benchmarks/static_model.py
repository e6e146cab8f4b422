"""A real model that costs next to nothing: the token vectors of MiniLM, averaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.packages import cache_folder
from pgqueue_embed.embedding import resolve_model
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL


def minilm_tokens() -> Path:
    """Return the folder of a model of the default model's token vectors, made at first use."""
    from safetensors.numpy import load_file

    folder = cache_folder() / "minilm-tokens"
    if not folder.exists():
        source = resolve_model(DEFAULT_MODEL).path
        tensors = load_file(source / "model.safetensors")
        tokenizer = (source / "tokenizer.json").read_text(encoding="utf-8")
        _save(folder, tokenizer, tensors["embeddings.word_embeddings.weight"])
    return folder


def _save(folder: Path, tokenizer_json: str, weights: NDArray[np.float32]) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    static = StaticEmbedding(tokenizer, embedding_weights=weights.astype(np.float32))
    SentenceTransformer(modules=[static, Normalize()], device="cpu").save(str(folder))
