"""Nearly free real models: the token vectors of wordllama (256-d) or MiniLM (384-d), averaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.packages import cache_folder, wheel
from pgqueue_embed.embedding import resolve_model
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL

VERSION = "0.4.0.post1"
WEIGHTS = "wordllama/weights/l2_supercat_256.safetensors"
TOKENIZER = "wordllama/tokenizers/l2_supercat_tokenizer_config.json"


def static_model() -> Path:
    """Return the folder of wordllama, made at first use; raises Missing without the wheel."""
    from safetensors.numpy import load

    folder = cache_folder() / f"wordllama-{VERSION}"
    if not folder.exists():
        with wheel("wordllama", VERSION) as archive:
            (weights,) = load(archive.read(WEIGHTS)).values()
            _save(folder, archive.read(TOKENIZER).decode(), weights)
    return folder


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
