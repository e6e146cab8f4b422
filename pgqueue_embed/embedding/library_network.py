"""A model as sentence-transformers opens it: any that it knows, and seconds to import."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pgqueue_embed.chunking.encoding import private_copy
from pgqueue_embed.embedding import canaries
from pgqueue_embed.embedding.network import (
    DOCUMENT,
    QUERY,
    UNLIMITED_TOKENS,
    Fed,
    Opened,
    Part,
    Prompts,
    failing_clearly,
    names_pooling,
)
from pgqueue_embed.embedding.packed import pack_modules
from pgqueue_embed.embedding.quiet import hear
from pgqueue_embed.embedding.weights import (
    loading_reports,
    refuse_random_weights,
    stray_weights,
)
from pgqueue_embed.errors import ModelError, UsageError

# The method of the library that reads the texts of a task.
_ENCODERS = {DOCUMENT: "encode_document", QUERY: "encode_query"}
_COSINE = "cosine"


def open_by_library(path: Path, name: str, *, pooling: str | None = None) -> Opened:
    """Load a model folder on the CPU, whatever the device: loading on Metal crashes.

    ``pooling`` is for a bare transformer, whose files do not say it. Runs no code of the model and
    reads no pickle. Raises ModelError in one line, also for weights that do not belong to the
    network that their configuration names, and UsageError for a pooling where the files name one.
    """
    with hear() as heard, loading_reports() as reports:
        import torch
        from sentence_transformers import SentenceTransformer

        with failing_clearly(f"model {name} in {path} cannot be loaded"):
            model = SentenceTransformer(
                str(path),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True, "dtype": torch.float32},
            )
    if pooling is not None:
        _pool(model, path, name, pooling)
    network = LibraryNetwork(model.float().eval())
    with failing_clearly(f"model {name} cannot embed"):
        refuse_random_weights(model, reports, name, network.probe)
    notes = heard.notes(name)
    return Opened(network=network, notes=notes, stray_weights=stray_weights(reports))


def _pool(model: Any, path: Path, name: str, pooling: str) -> None:
    """Let the vectors of tokens become one by ``pooling``, where the library takes their mean."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    if names_pooling(path):
        raise UsageError(
            f"--pooling {pooling}: the files of model {name} say themselves how the vectors of its"
            " tokens become one; leave it out"
        )
    first, _ = model
    model[1] = Pooling(first.get_embedding_dimension(), pooling)


class _Enough(Exception):
    """Ends a call of the library once it has fed its network."""


class LibraryNetwork:
    """Fulfils network.Network; ``model`` is the SentenceTransformer."""

    # Some networks keep what they make of the length of a batch, such as tables of positions.
    is_stateless = False

    def __init__(self, model: Any) -> None:
        self.model = model
        self.prompts = Prompts(named=model.prompts or {}, default=model.default_prompt_name)
        self.similarity: str = model.similarity_fn_name or _COSINE
        self.truncate_dim: int | None = model.truncate_dim
        self._parts: dict[int, Part] = {}

    def part(self, task: str) -> Part:
        """Return what reads texts of a task."""
        modules = self._modules(task)
        key = id(modules[0])
        self._parts[key] = self._parts.get(key) or _part(modules)
        return self._parts[key]

    def feed(self, task: str, text: str, prompt: str | None = None) -> Fed:
        """Let the library read a text by its public method, and return what it feeds.

        Without ``prompt`` the library chooses its own. Nothing is computed.
        """
        seen: list[Fed] = []

        def look(_module: Any, inputs: tuple[Any, ...]) -> None:
            seen.append(Fed(features=dict(inputs[0])))
            raise _Enough

        hooks = [module.register_forward_pre_hook(look) for module in self._inputs]
        try:
            getattr(self.model, _ENCODERS[task])([text], prompt=prompt, show_progress_bar=False)
        except _Enough:
            return seen[0]
        finally:
            for hook in hooks:
                hook.remove()
        raise ModelError("no module of the model reads texts")

    def features(self, task: str, texts: list[str], prompt: str) -> dict[str, Any]:
        """Return the features of texts in one batch, as the library makes them."""
        if hasattr(self.model, "preprocess"):
            return dict(self.model.preprocess(texts, prompt=prompt, task=task))
        return dict(self.model.tokenize([prompt + text for text in texts]))

    def vectors(self, features: dict[str, Any], task: str) -> Any:
        """Start to compute features on their device."""
        return self.model(features, task=task)["sentence_embedding"]

    def convert(self, dtype: str) -> None:
        """Keep the weights in another format from now on."""
        import torch

        self.model.to(getattr(torch, dtype))

    def pack(self) -> None:
        """Multiply by oneDNN from now on."""
        pack_modules(self.model)

    def to(self, device: str) -> None:
        """Move the weights to a device."""
        self.model.to(device)

    def encode(self, task: str, texts: list[str], prompt: str) -> NDArray[np.float32]:
        """Embed texts by the library's public method, one at a time; shape (n, dimensions)."""
        method = getattr(self.model, _ENCODERS[task])
        return np.stack([method(text, prompt=prompt, show_progress_bar=False) for text in texts])

    def probe(self) -> NDArray[np.float32]:
        """Return all numbers of the vectors of some documents and queries in a row."""
        vectors = [
            getattr(self.model, encoder)(text, show_progress_bar=False)
            for encoder in _ENCODERS.values()
            for text in canaries.TEXTS
        ]
        return np.concatenate(vectors)

    @cached_property
    def _inputs(self) -> list[Any]:
        """The modules that turn texts into features; a Router only chooses one of its own."""
        return [
            module
            for module in self.model.modules()
            if module is not self.model
            and not hasattr(module, "sub_modules")
            and (hasattr(module, "preprocess") or hasattr(module, "tokenize"))
        ]

    def _modules(self, task: str) -> list[Any]:
        """Return the modules that a text of ``task`` runs through, in order."""
        found: list[Any] = []
        for module in self.model:
            routes = getattr(module, "sub_modules", None)
            if routes is None:
                found.append(module)
            else:
                found += routes[module._resolve_route(task=task, modality="text")]
        return found


def _part(modules: list[Any]) -> Part:
    first = modules[0]
    tokenizer = _fast_tokenizer(first)
    return Part(
        name=type(first).__name__,
        kinds=tuple(type(getattr(each, "auto_model", each)).__name__ for each in modules),
        poolings=tuple(_pooling(each) for each in modules if hasattr(each, "pooling_mode")),
        is_transformer=_is_transformer(first),
        is_table=type(first).__name__ == "StaticEmbedding",
        tokenizer=tokenizer,
        private_tokenizer=tokenizer and private_copy(tokenizer),
        padding_id=getattr(getattr(first, "tokenizer", None), "pad_token_id", None),
        declared_tokens=_declared_tokens(first),
        token_rows=_token_rows(first),
    )


def _pooling(module: Any) -> str:
    mode = module.pooling_mode
    return mode if isinstance(mode, str) else "+".join(mode)


def _token_rows(module: Any) -> int | None:
    try:
        if _is_transformer(module):
            return int(module.auto_model.get_input_embeddings().weight.shape[0])
        return int(module.embedding.num_embeddings)
    except (AttributeError, NotImplementedError):
        return None


def _is_transformer(module: Any) -> bool:
    return hasattr(module, "auto_model")


def _fast_tokenizer(module: Any) -> Tokenizer | None:
    tokenizer = getattr(module, "tokenizer", None)
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend if isinstance(backend, Tokenizer) else None


def _declared_tokens(module: Any) -> int:
    limits = [getattr(module, "max_seq_length", None)]
    if _is_transformer(module):
        limits.append(_positions(module.auto_model))
    known = [int(limit) for limit in limits if limit and math.isfinite(limit) and limit > 0]
    return min([*known, UNLIMITED_TOKENS])


# What encoders, and encoders with a decoder, call their tables of positions.
_POSITION_TABLES = ("position_embeddings", "embed_positions")


def _positions(model: Any) -> int | None:
    """Return how many positions a network has.

    Networks of RoBERTa's kind count them from behind the padding id, so that 514 rows are for 512;
    those of BART's kind have an offset.
    """
    from torch.nn import Embedding

    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else None
    limits = [getattr(config or model.config, "max_position_embeddings", None)]
    for module in model.modules():
        table, other = (getattr(module, name, None) for name in _POSITION_TABLES)
        if isinstance(table, Embedding):
            padding = getattr(module, "padding_idx", None)
            limits.append(table.num_embeddings - (padding + 1 if isinstance(padding, int) else 0))
        if isinstance(other, Embedding):
            limits.append(other.num_embeddings - int(getattr(other, "offset", 0)))
    known = [limit for limit in limits if isinstance(limit, int) and limit > 0]
    return min(known, default=None)
