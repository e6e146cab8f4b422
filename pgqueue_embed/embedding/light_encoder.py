"""Encodes queries without torch and its libraries, for models where that is proved to be equal.

A query is one text on the CPU, computed in a hundredth of a second; to import the libraries takes
seconds. Whatever in a model's files is not understood here, or too long, is left to the library.
"""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer

from pgqueue_embed.embedding.model_use import ModelUse
from pgqueue_embed.embedding.network import QUERY
from pgqueue_embed.embedding.numpy_network import NumpyNetwork
from pgqueue_embed.embedding.resolve import ResolvedModel
from pgqueue_embed.embedding.rows import Vectors, unit_rows
from pgqueue_embed.embedding.understood import understand


class LightEncoder:
    """A model's network for queries in numpy, over the files that hold its weights.

    Attributes: ``tokenizer``, a private copy; ``prompt``, "" for none. Safe to call from many
    threads.
    """

    def __init__(self, resolved: ResolvedModel, use: ModelUse) -> None:
        """Open a model; raises whatever comes of files that say something else than expected."""
        understood = understand(resolved.path, use)
        own = understood.prompts.own(QUERY)
        self.prompt = own if use.query_prompt is None else use.query_prompt
        self.tokenizer: Tokenizer = understood.tokenizer.private
        self._has_control = understood.tokenizer.has_control
        self._network = NumpyNetwork(understood.stack)
        self._most_tokens = understood.max_tokens

    def encode(self, text: str) -> Vectors | None:
        """Return the unit vector of a query, shape (dimensions,), or None for the library's turn.

        It is where the query may have more tokens than the model reads, or spells a control token.
        """
        ids = self.tokenizer.encode(self.prompt + text).ids
        if len(ids) > self._most_tokens or self._has_control(text):
            return None
        # NaN is found in the vector.
        with np.errstate(all="ignore"):
            vector = self._network.vector(np.array(ids, np.int64))
        unit: Vectors = unit_rows(vector[None])[0]
        return unit


def open_light_encoder(resolved: ResolvedModel, use: ModelUse) -> LightEncoder | None:
    """Return an encoder for the queries of a model, or None where the library has to read it."""
    try:
        return LightEncoder(resolved, use)
    except Exception:  # noqa: BLE001 - files of any content: the library says what is wrong with them
        return None
