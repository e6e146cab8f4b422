"""The vector of a query: its model, loaded once a process, and what it encodes."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from pgqueue_embed.chunking import Chunker
from pgqueue_embed.embedding import EmbeddingModel, ModelUse
from pgqueue_embed.embedding.rows import first_dimensions
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.model import check_local_model, use_of
from pgqueue_embed.pipeline.pipeline import Pipeline

# A change of model takes two at once; beyond these, the one not used for longest is forgotten.
MOST_MODELS = 4

_encoders: OrderedDict[tuple[str, ModelUse], QueryEncoder] = OrderedDict()
_lock = threading.Lock()


def encoder_of(pipeline: Pipeline) -> QueryEncoder:
    """Return the encoder with the pipeline's model, loaded unless it is at hand already.

    Raises ModelMismatch if this machine's model is not the pipeline's, else ModelError.
    """
    # Under the lock, so that many first searches at once load the model once.
    with _lock:
        key = (pipeline.model_fingerprint, use_of(pipeline.spec))
        found = _encoders.pop(key, None) or QueryEncoder(pipeline)
        _encoders[key] = found
        if len(_encoders) > MOST_MODELS:
            _encoders.popitem(last=False)
        return found


def check_query(query: object) -> None:
    """Raise UsageError for what is no text, or has nothing in it."""
    if not isinstance(query, str) or not query.strip():
        raise UsageError("the query is empty; give a few words")


class QueryEncoder:
    """A pipeline's own model, loaded to encode queries: on the CPU, where one query is fast."""

    def __init__(self, pipeline: Pipeline, *, model_path: str | None = None) -> None:
        """Raise ModelMismatch if this machine's model is not the pipeline's, else ModelError."""
        resolved = check_local_model(pipeline, model_path)
        self._model = EmbeddingModel.load(
            resolved, device="cpu", precision="fp32", use=use_of(pipeline.spec)
        )

    def encode(self, query: str, truncate_dim: int | None = None) -> NDArray[np.float32]:
        """Return the unit vector of `query`, shape (dimensions,), with its query prompt.

        Of the first `truncate_dim` dimensions, if given: pipelines of one model may differ in it.
        Raises UsageError for a query without text, or longer than the model reads.
        """
        check_query(query)
        vector = self._model.encode_query(query)
        return vector if truncate_dim is None else first_dimensions(vector[None], truncate_dim)[0]

    def unknown_share(self, query: str) -> float:
        """Return the share, 0 to 1, of the query's tokens that the model does not know."""
        budget = self._model.content_budget
        chunker = Chunker(self._model.tokenizer, max_tokens=budget, overlap_tokens=0)
        (chunked,) = chunker.chunk([query])
        return chunked.unknown_tokens / chunked.tokens if chunked.tokens else 0.0
