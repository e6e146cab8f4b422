"""The sentence-transformers model behind an EmbeddingModel, opened on the CPU in fp32."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pgqueue_embed.embedding.quiet import hear
from pgqueue_embed.embedding.weights import loading_reports, refuse_random_weights
from pgqueue_embed.errors import ModelError, UsageError

UNLIMITED_TOKENS = 1 << 30

# What a model is asked to read, and the method of the library that reads it.
DOCUMENT = "document"
QUERY = "query"
_ENCODERS = {DOCUMENT: "encode_document", QUERY: "encode_query"}
_PROMPT_NAMES = {DOCUMENT: ("document", "passage", "corpus"), QUERY: ("query",)}


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A network, and what the libraries had to say about it that a person should know."""

    network: Any
    notes: tuple[str, ...]


def open_network(path: Path, name: str, *, pooling: str | None = None) -> Opened:
    """Load a model folder on the CPU, whatever the device: loading on Metal crashes.

    ``pooling`` is for a bare transformer, whose files do not say it. Runs no code of the model and
    reads no pickle. Raises ModelError in one line, also for weights that do not belong to the
    network that their configuration names, and UsageError for a pooling where the files name one.
    """
    with hear() as heard, loading_reports() as reports:
        import torch
        from sentence_transformers import SentenceTransformer

        try:
            network = SentenceTransformer(
                str(path),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True, "dtype": torch.float32},
            )
        except Exception as error:  # a dozen libraries' errors; all mean that this model is no use
            reason = str(error).strip().split("\n")[0]
            raise ModelError(f"model {name} in {path} cannot be loaded: {reason}") from error
    if pooling is not None:
        _pool(network, path, name, pooling)
    network = network.float().eval()
    refuse_random_weights(network, reports, name, lambda: _probe(network))
    return Opened(network=network, notes=heard.notes(name))


def names_pooling(path: Path) -> bool:
    """Tell whether a model's files say how the vectors of its tokens become one."""
    return (path / "modules.json").is_file()


def _pool(network: Any, path: Path, name: str, pooling: str) -> None:
    """Let the vectors of tokens become one by ``pooling``, where the library takes their mean."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    if names_pooling(path):
        raise UsageError(
            f"--pooling {pooling}: the files of model {name} say themselves how the vectors of its"
            " tokens become one; leave it out"
        )
    first, _ = network
    network[1] = Pooling(first.get_embedding_dimension(), pooling)


def _probe(network: Any) -> NDArray[np.float32]:
    texts = ["The pump stopped.", "设备停止工作 (2)"]
    vectors = [network.encode_document(text, show_progress_bar=False) for text in texts]
    return np.stack(vectors)


@dataclass(frozen=True, kw_only=True)
class Fed:
    """What the library feeds to a network for one text: to which module, and all features."""

    module: Any
    features: dict[str, Any]

    @property
    def ids(self) -> list[int]:
        """The token ids, in order."""
        return [int(each) for each in self.features["input_ids"].flatten().tolist()]


class _Enough(Exception):
    """Ends a call of the library once it has fed its network."""


def feed(network: Any, inputs: list[Any], task: str, text: str, prompt: str | None = None) -> Fed:
    """Let the library read a text by its public method, and return what it feeds to its network.

    ``inputs`` are the network's `input_modules`. Without ``prompt`` the library chooses its own.
    Nothing is computed.
    """
    seen: list[Fed] = []

    def look(module: Any, inputs: tuple[Any, ...]) -> None:
        seen.append(Fed(module=module, features=dict(inputs[0])))
        raise _Enough

    hooks = [module.register_forward_pre_hook(look) for module in inputs]
    try:
        getattr(network, _ENCODERS[task])([text], prompt=prompt, show_progress_bar=False)
    except _Enough:
        return seen[0]
    finally:
        for hook in hooks:
            hook.remove()
    raise ModelError("no module of the model reads texts")


def encode(network: Any, task: str, texts: list[str], prompt: str) -> NDArray[np.float32]:
    """Embed texts by the library's public method, one at a time; shape (n, dimensions)."""
    method = getattr(network, _ENCODERS[task])
    return np.stack([method(text, prompt=prompt, show_progress_bar=False) for text in texts])


def preprocess(network: Any, task: str, texts: list[str], prompt: str) -> dict[str, Any]:
    """Return the features of texts in one batch, as the library makes them."""
    if hasattr(network, "preprocess"):
        return dict(network.preprocess(texts, prompt=prompt, task=task))
    return dict(network.tokenize([prompt + text for text in texts]))


def input_modules(network: Any) -> list[Any]:
    """Return the modules that turn texts into features; a Router only chooses one of its own."""
    return [
        module
        for module in network.modules()
        if module is not network
        and not hasattr(module, "sub_modules")
        and (hasattr(module, "preprocess") or hasattr(module, "tokenize"))
    ]


def modules_of(network: Any, task: str) -> list[Any]:
    """Return the modules that a text of ``task`` runs through, in order."""
    found: list[Any] = []
    for module in network:
        routes = getattr(module, "sub_modules", None)
        if routes is None:
            found.append(module)
        else:
            found += routes[module._resolve_route(task=task, modality="text")]
    return found


def is_transformer(module: Any) -> bool:
    """Tell whether a module reads token ids as a Transformer does."""
    return hasattr(module, "auto_model")


def is_table(module: Any) -> bool:
    """Tell whether a module looks up a vector for each token, and no more."""
    return type(module).__name__ == "StaticEmbedding"


def fast_tokenizer(module: Any) -> Tokenizer | None:
    """Return the Rust tokenizer of a module, or None where it has none."""
    tokenizer = getattr(module, "tokenizer", None)
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend if isinstance(backend, Tokenizer) else None


def padding_id(module: Any) -> int | None:
    """Return the id that pads a batch, or None."""
    return getattr(getattr(module, "tokenizer", None), "pad_token_id", None)


def declared_tokens(module: Any) -> int:
    """Return how many tokens the files say a module reads, special ones included."""
    limits = [getattr(module, "max_seq_length", None)]
    if is_transformer(module):
        limits.append(_positions(module.auto_model))
    known = [int(limit) for limit in limits if limit and math.isfinite(limit) and limit > 0]
    return min([*known, UNLIMITED_TOKENS])


def _positions(model: Any) -> int | None:
    """Return how many positions a network has.

    Networks of RoBERTa's kind count them from behind the padding id, so that 514 rows are for 512.
    """
    from torch.nn import Embedding

    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else None
    limits = [getattr(config or model.config, "max_position_embeddings", None)]
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, Embedding):
            padding = getattr(module, "padding_idx", None)
            limits.append(table.num_embeddings - (padding + 1 if isinstance(padding, int) else 0))
    known = [limit for limit in limits if isinstance(limit, int) and limit > 0]
    return min(known, default=None)


def own_prompt(network: Any, task: str) -> str:
    """Return the prompt that a model's files name for a text of ``task``, "" for none.

    The library adds names with an empty prompt as placeholders: such a name keeps the default
    prompt away, but not the prompt of the next name.
    """
    known: dict[str, str | None] = network.prompts or {}
    named = [known[name] or "" for name in _PROMPT_NAMES[task] if name in known]
    if not named:
        return known.get(network.default_prompt_name or "") or ""
    return next(filter(None, named), "")


def has_placeholder(network: Any, task: str) -> bool:
    """Tell whether the library knows a name for a prompt of ``task`` that has none."""
    known = network.prompts or {}
    return any(name in known and not known[name] for name in _PROMPT_NAMES[task])


def on_host(vectors: Any) -> NDArray[np.float32]:
    """Return vectors as an array in the host's memory; waits for the device if they are there."""
    if isinstance(vectors, np.ndarray):
        return vectors
    array: NDArray[np.float32] = vectors.cpu().numpy()
    return array
