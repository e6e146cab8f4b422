"""A model that this package opens by itself, of torch and its files, where all is understood.

To import sentence-transformers and transformers takes seconds. Which models these are says
`understood`; that nothing but the time differs is proved by tests for a model of each kind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pgqueue_embed.embedding.inputs import pad
from pgqueue_embed.embedding.light_files import Dense, NotUnderstood
from pgqueue_embed.embedding.model_use import ModelUse
from pgqueue_embed.embedding.network import Fed, Opened, Part
from pgqueue_embed.embedding.understood import Understood, understand

_COSINE = "cosine"


class LightNetwork:
    """Fulfils network.Network."""

    truncate_dim: int | None = None
    is_stateless = True

    def __init__(self, understood: Understood) -> None:
        """Open the weights; raises NotUnderstood without a token to pad with."""
        import torch

        from pgqueue_embed.embedding.torch_network import TorchNetwork

        self.prompts = understood.prompts
        self.similarity = understood.similarity or _COSINE
        self._torch = torch
        self._tokenizer = understood.tokenizer.as_library(understood.max_seq_length)
        padding_id = self._tokenizer.token_to_id(understood.tokenizer.padding or "")
        if padding_id is None:
            raise NotUnderstood("a token to pad with")
        self._padding_id = padding_id
        self._network = TorchNetwork(understood.stack)
        self._part = self._part_of(understood)

    def _part_of(self, understood: Understood) -> Part:
        stack = understood.stack
        after = ("Dense" if isinstance(step, Dense) else "Normalize" for step in stack.after)
        return Part(
            name="Transformer",
            kinds=(stack.plan.architecture, "Pooling", *after),
            poolings=(stack.pooling,),
            is_transformer=True,
            is_table=False,
            tokenizer=self._tokenizer,
            private_tokenizer=understood.tokenizer.private,
            padding_id=self._padding_id,
            declared_tokens=understood.max_tokens,
            token_rows=stack.plan.vocabulary,
        )

    def part(self, task: str) -> Part:
        """Return what reads texts, of any task."""
        return self._part

    def feed(self, task: str, text: str, prompt: str | None = None) -> Fed:
        """Return what is fed for a text, cut to the model's limit."""
        prompt = self.prompts.own(task) if prompt is None else prompt
        return Fed(features=self.features(task, [text], prompt))

    def features(self, task: str, texts: list[str], prompt: str) -> dict[str, Any]:
        """Return the features of texts in one batch, as the library makes them."""
        encoded = self._tokenizer.encode_batch([prompt + text for text in texts])
        sequences = [np.array(each.ids, np.int64) for each in encoded]
        longest = max(map(len, sequences))
        ids, mask = pad(sequences, longest, self._padding_id)
        features = {"input_ids": self._torch.from_numpy(ids)}
        if mask is not None:
            features["attention_mask"] = self._torch.from_numpy(mask)
        return features

    def vectors(self, features: dict[str, Any], task: str) -> Any:
        """Start to compute features on their device."""
        return self._network.vectors(features["input_ids"], features.get("attention_mask"))

    def convert(self, dtype: str) -> None:
        """Keep the weights in another format from now on."""
        self._network.to(dtype=getattr(self._torch, dtype))

    def pack(self) -> None:
        """Multiply by oneDNN from now on."""
        self._network.pack()

    def to(self, device: str) -> None:
        """Move the weights to a device."""
        self._network.to(device=device)


def open_light(path: Path, use: ModelUse) -> Opened | None:
    """Open a model's folder, or return None where the library has to read it."""
    try:
        return Opened(network=LightNetwork(understand(path, use)))
    except Exception:  # noqa: BLE001 - files of any content: the library says what is wrong with them
        return None
