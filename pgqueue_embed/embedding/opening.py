"""Opens a model: without the library where that is proved to be equal, else by it."""

from __future__ import annotations

import os

from pgqueue_embed.embedding.devices import require_torch
from pgqueue_embed.embedding.library_network import open_by_library
from pgqueue_embed.embedding.light_network import open_light
from pgqueue_embed.embedding.model_use import ModelUse
from pgqueue_embed.embedding.network import Opened
from pgqueue_embed.embedding.resolve import ResolvedModel


def open_network(resolved: ResolvedModel, use: ModelUse, *, by_library: bool = False) -> Opened:
    """Open a model on the CPU in fp32; with ``by_library`` whatever it is.

    Raises ModelError and UsageError as `open_by_library` does.
    """
    # Said aloud, tokenizers neither warns nor gives up its threads; we never fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    require_torch()
    light = None if by_library else open_light(resolved.path, use)
    return light or open_by_library(resolved.path, resolved.name, pooling=use.pooling)
