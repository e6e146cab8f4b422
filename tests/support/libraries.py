"""The libraries of models, each imported at its first use.

They take seconds, and of the processes that tests are shared among, one runs those that need them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
    import transformers as transformers
    from safetensors.torch import load_file as load_file
    from safetensors.torch import save_file as save_file
    from sentence_transformers import SentenceTransformer as SentenceTransformer
    from sentence_transformers.base.modules import Dense as Dense
    from sentence_transformers.base.modules import Router as Router
    from sentence_transformers.base.modules import Transformer as Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize as Normalize
    from sentence_transformers.sentence_transformer.modules import Pooling as Pooling
    from sentence_transformers.sentence_transformer.modules import (
        StaticEmbedding as StaticEmbedding,
    )
    from sentence_transformers.sentence_transformer.modules import (
        WordEmbeddings as WordEmbeddings,
    )
    from sentence_transformers.sentence_transformer.modules.tokenizer import (
        WhitespaceTokenizer as WhitespaceTokenizer,
    )
else:

    class _Late:
        """Stands for a module, or a name in it, until something of it is asked for."""

        def __init__(self, module: str, name: str | None = None) -> None:
            self._place = module, name

        def _found(self) -> Any:
            module, name = self._place
            found = import_module(module)
            return found if name is None else getattr(found, name)

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):  # pytest looks at what a file of tests has imported
                raise AttributeError(name)
            return getattr(self._found(), name)

        def __call__(self, *arguments: Any, **options: Any) -> Any:
            return self._found()(*arguments, **options)

    _MODULES = "sentence_transformers.sentence_transformer.modules"
    torch = _Late("torch")
    transformers = _Late("transformers")
    load_file = _Late("safetensors.torch", "load_file")
    save_file = _Late("safetensors.torch", "save_file")
    SentenceTransformer = _Late("sentence_transformers", "SentenceTransformer")
    Dense = _Late("sentence_transformers.base.modules", "Dense")
    Router = _Late("sentence_transformers.base.modules", "Router")
    Transformer = _Late("sentence_transformers.base.modules", "Transformer")
    Normalize = _Late(_MODULES, "Normalize")
    Pooling = _Late(_MODULES, "Pooling")
    StaticEmbedding = _Late(_MODULES, "StaticEmbedding")
    WordEmbeddings = _Late(_MODULES, "WordEmbeddings")
    WhitespaceTokenizer = _Late(f"{_MODULES}.tokenizer", "WhitespaceTokenizer")
