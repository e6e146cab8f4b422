"""The sentence-transformers model behind an EmbeddingModel, opened on the CPU in fp32."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pgqueue_embed.embedding.quiet import quieten
from pgqueue_embed.errors import ModelError

UNLIMITED_TOKENS = 1 << 30
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")


def open_network(path: Path, name: str) -> Any:
    """Load a model folder on the CPU, whatever the device: loading on Metal crashes.

    Runs no code of the model and reads no pickle. Raises ModelError in one line.
    """
    quieten()
    from sentence_transformers import SentenceTransformer

    try:
        network = SentenceTransformer(
            str(path),
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    except Exception as error:  # a dozen libraries' errors; all mean that this model is no use
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"model {name} in {path} cannot be loaded: {reason}") from error
    _read_control_tokens_as_text(network)
    return network.float().eval()


def is_transformer(network: Any) -> bool:
    """Tell whether the first module reads token ids as a Transformer does."""
    return type(network[0]).__name__ == "Transformer"


def fast_tokenizer(network: Any) -> Tokenizer | None:
    """Return the Rust tokenizer of a model, or None where it has none."""
    tokenizer = getattr(network[0], "tokenizer", None)
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend if isinstance(backend, Tokenizer) else None


def padding_id(network: Any) -> int | None:
    """Return the id that pads a batch, or None."""
    return getattr(getattr(network[0], "tokenizer", None), "pad_token_id", None)


def max_sequence_tokens(network: Any) -> int:
    """Return how many tokens the model reads, special ones included."""
    limits = [getattr(network, "max_seq_length", None)]
    if is_transformer(network):
        config = getattr(network[0].auto_model, "config", None)
        limits.append(getattr(config, "max_position_embeddings", None))
    known = [int(limit) for limit in limits if limit and math.isfinite(limit) and limit > 0]
    return min([*known, UNLIMITED_TOKENS])


def prompts(network: Any) -> tuple[str, str]:
    """Return the prompts in front of documents and of queries, "" where there is none."""
    known: dict[str, str] = {name: text or "" for name, text in (network.prompts or {}).items()}
    fallback = known.get(network.default_prompt_name or "", "")
    document = next((known[name] for name in _DOCUMENT_PROMPTS if known.get(name)), fallback)
    return document, known.get("query") or fallback


def on_host(vectors: Any) -> NDArray[np.float32]:
    """Return vectors as an array in the host's memory; waits for the device if they are there."""
    if isinstance(vectors, np.ndarray):
        return vectors
    array: NDArray[np.float32] = vectors.cpu().numpy()
    return array


def _read_control_tokens_as_text(network: Any) -> None:
    """Make ``[SEP]`` in a document four or five plain tokens, not the end of the input."""
    tokenizer: Any = getattr(network[0], "tokenizer", None)
    if hasattr(tokenizer, "split_special_tokens"):
        tokenizer.split_special_tokens = True
    backend = fast_tokenizer(network)
    if backend is not None:
        backend.encode_special_tokens = True
