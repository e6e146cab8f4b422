"""A nearly free real model: the 256-d token vectors of the wheel wordllama, averaged."""

from __future__ import annotations

from pathlib import Path

from benchmarks.packages import cache_folder, wheel

VERSION = "0.4.0.post1"
WEIGHTS = "wordllama/weights/l2_supercat_256.safetensors"
TOKENIZER = "wordllama/tokenizers/l2_supercat_tokenizer_config.json"


def static_model() -> Path:
    """Return the folder of the model, made at first use; raises Missing without the wheel."""
    folder = cache_folder() / f"wordllama-{VERSION}"
    if not folder.exists():
        _save(folder)
    return folder


def _save(folder: Path) -> None:
    from safetensors.numpy import load
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
    from tokenizers import Tokenizer

    with wheel("wordllama", VERSION) as archive:
        (weights,) = load(archive.read(WEIGHTS)).values()
        tokenizer = Tokenizer.from_str(archive.read(TOKENIZER).decode())
    static = StaticEmbedding(tokenizer, embedding_weights=weights.astype("float32"))
    SentenceTransformer(modules=[static, Normalize()], device="cpu").save(str(folder))
