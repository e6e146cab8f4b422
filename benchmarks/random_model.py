"""A network as large as the models of 300 million parameters, with the default model's tokenizer.

What it computes means nothing and takes as long as what such a model computes.
"""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree, ignore_patterns, rmtree

import numpy as np

from benchmarks.packages import cache_folder
from pgqueue_embed.embedding import resolve_model
from pgqueue_embed.embedding.light_files import plan_of, settings_of
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL

# BERT-large's: 335 million parameters with MiniLM's vocabulary.
SIZES = {
    "hidden_size": 1_024,
    "intermediate_size": 4_096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
SPREAD = 0.02  # BERT's own initializer_range


def large_model() -> Path:
    """Return the folder of the model, made at first use; it has 1.3 GB."""
    folder = cache_folder() / "bert-large-random"
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        rmtree(partial, ignore_errors=True)
        _save(partial)
        partial.rename(folder)
    return folder


def _save(folder: Path) -> None:
    from safetensors.numpy import save_file

    copytree(resolve_model(DEFAULT_MODEL).path, folder, ignore=ignore_patterns("*.safetensors"))
    _edit(folder / "config.json", **SIZES)
    _edit(folder / "1_Pooling" / "config.json", word_embedding_dimension=SIZES["hidden_size"])
    plan = plan_of(settings_of(folder, "config.json"))
    random = np.random.default_rng(1)
    weights = {
        name: np.ones(shape, np.float32)
        if name.endswith("LayerNorm.weight")
        else SPREAD * random.standard_normal(shape, np.float32)
        for name, shape in plan.shapes().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _edit(file: Path, **settings: int) -> None:
    found = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**found, **settings}), encoding="utf-8")
