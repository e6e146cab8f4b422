"""The vector of a query: its model, loaded once a process, and what it encodes."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from pgqueue_embed.chunking.encoding import unknown_id
from pgqueue_embed.embedding import EmbeddingModel, ModelUse
from pgqueue_embed.embedding.light_encoder import open_light_encoder
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
    try:
        query.encode()
    except UnicodeEncodeError:
        raise UsageError("the query is no text that UTF-8 has") from None


class QueryEncoder:
    """A pipeline's own model, to encode queries on the CPU, where one query is fast.

    Computed by the light encoder where that is proved to give the library's vectors. The library,
    seconds to import, is opened when it is first needed. Safe to call from many threads.
    """

    def __init__(self, pipeline: Pipeline, *, model_path: str | None = None) -> None:
        """Raise ModelMismatch if this machine's model is not the pipeline's, else ModelError."""
        self._resolved = check_local_model(pipeline, model_path)
        self._use = use_of(pipeline.spec)
        self._loading = threading.Lock()
        self._model: EmbeddingModel | None = None
        self._light = open_light_encoder(self._resolved, self._use)
        if self._light is None:
            self._library()

    def encode(self, query: str, truncate_dim: int | None = None) -> NDArray[np.float32]:
        """Return the unit vector of `query`, shape (dimensions,), with its query prompt.

        Of the first `truncate_dim` dimensions, if given: pipelines of one model may differ in it.
        Raises UsageError for a query without text, or longer than the model reads, and ModelError.
        """
        check_query(query)
        vector = self._light.encode(query) if self._light else None
        if vector is None:
            vector = self._library().encode_query(query)
        return vector if truncate_dim is None else first_dimensions(vector[None], truncate_dim)[0]

    def unknown_share(self, query: str) -> float:
        """Return the share, 0 to 1, of the query's tokens that the model does not know."""
        tokenizer = self._light.tokenizer if self._light else self._library().tokenizer
        ids = np.array(tokenizer.encode(query, add_special_tokens=False).ids)
        return float((ids == unknown_id(tokenizer)).mean()) if len(ids) else 0.0

    def _library(self) -> EmbeddingModel:
        """Return the model as the library opens it, once."""
        with self._loading:
            if self._model is None:
                self._model = EmbeddingModel.reference(self._resolved, use=self._use)
            return self._model
