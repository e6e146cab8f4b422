"""Encodes queries without torch and its libraries, for models where that is proved to be equal.

A query is one text on the CPU, computed in a hundredth of a second; to import the libraries takes
seconds. Whatever in a model's files is not understood here, or too long, is left to the library.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
from tokenizers import Tokenizer

from pgqueue_embed.embedding import light_files, light_tokenizer
from pgqueue_embed.embedding.light_files import Settings, require, settings_of
from pgqueue_embed.embedding.model_use import ModelUse
from pgqueue_embed.embedding.network import QUERY, UNLIMITED_TOKENS, own_prompt
from pgqueue_embed.embedding.resolve import ResolvedModel
from pgqueue_embed.embedding.rows import Vectors, unit_rows

# What an adapter or another network adds to a folder.
_MORE = ("adapter_config.json", "router_config.json", "*.safetensors.index.json")
_READING = {
    "do_lower_case": False,
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
_ABOUT = {"__version__", "default_prompt_name", "model_type", "prompts", "similarity_fn_name"}


class LightEncoder:
    """A model's network for queries in numpy, over the files that hold its weights.

    Attributes: ``tokenizer``, a private copy; ``prompt``, "" for none. Safe to call from many
    threads.
    """

    def __init__(self, resolved: ResolvedModel, use: ModelUse) -> None:
        """Open a model; raises whatever comes of files that say something else than expected."""
        path = resolved.path
        require(not (use.control_tokens or use.pooling), "how it is used")
        require(not any(any(path.rglob(pattern)) for pattern in _MORE), "more than a network")
        self.prompt = _prompt(path, use)
        self.tokenizer: Tokenizer
        self.tokenizer, tokenizer_settings, self._controls = light_tokenizer.open_tokenizer(path)
        require(not self._has_control(self.prompt), "a control token in its prompt")
        self._network = light_files.open_network(path)
        self._steps = light_files.open_steps(path, self._network.plan.width)
        self._most_tokens = min(self._network.plan.tokens, _limit(path, tokenizer_settings))

    def encode(self, text: str) -> Vectors | None:
        """Return the unit vector of a query, shape (dimensions,), or None for the library's turn.

        It is where the query may have more tokens than the model reads, or spells a control token.
        """
        ids = self.tokenizer.encode(self.prompt + text).ids
        if len(ids) > self._most_tokens or self._has_control(text):
            return None
        # What is no number is found in the vector.
        with np.errstate(all="ignore"):
            vector = self._network.tokens(np.array(ids, np.int64))
            for step in self._steps:
                vector = step(vector)
        unit: Vectors = unit_rows(vector[None])[0]
        return unit

    def _has_control(self, text: str) -> bool:
        return any(each in text for each in self._controls)


def _prompt(path: Path, use: ModelUse) -> str:
    """Return what stands in front of a query, chosen by the rule for the library's own prompts."""
    about = settings_of(path, "config_sentence_transformers.json")
    require(about.keys() <= _ABOUT, "a setting of the whole")
    require(about.get("model_type", _SENTENCES) == _SENTENCES, "its kind")
    require(about.get("default_prompt_name") is None, "a default prompt")
    prompts = about.get("prompts") or {}
    require(all(isinstance(each, str) for each in prompts.values()), "its prompts")
    named = SimpleNamespace(prompts=prompts, default_prompt_name=None)
    return own_prompt(named, QUERY) if use.query_prompt is None else use.query_prompt


def _limit(path: Path, tokenizer: Settings) -> int:
    """Return how many tokens are read for certain, whichever of the limits in the files counts."""
    reading = settings_of(path, "sentence_bert_config.json")
    require(reading.keys() <= {*_READING, "max_seq_length"}, "a setting of its reading")
    require(all(reading.get(name, usual) == usual for name, usual in _READING.items()), "reading")
    limits = [reading.get("max_seq_length"), tokenizer.get("model_max_length")]
    if limits[0] is None:
        limits.append(tokenizer.get("max_length"))
        limits.append((settings_of(path, "tokenizer.json")["truncation"] or {}).get("max_length"))
    return int(min(limit for limit in (*limits, UNLIMITED_TOKENS) if limit is not None))


_SENTENCES = "SentenceTransformer"


def open_light_encoder(resolved: ResolvedModel, use: ModelUse) -> LightEncoder | None:
    """Return an encoder for the queries of a model, or None where the library has to read it."""
    try:
        return LightEncoder(resolved, use)
    except Exception:  # noqa: BLE001 - files of any content: the library says what is wrong with them
        return None
