"""Models that encode queries, loaded once a process."""

from __future__ import annotations

import threading
from collections import OrderedDict

from pgqueue_embed.semantic_search import QueryEncoder
from pgqueue_embed.settings import Pipeline

# A change of model takes two at once; beyond these, the one not used for longest is forgotten.
MOST_MODELS = 4

_encoders: OrderedDict[str, QueryEncoder] = OrderedDict()
_lock = threading.Lock()


def encoder_of(pipeline: Pipeline) -> QueryEncoder:
    """Return the encoder with the pipeline's model, loaded unless it is at hand already.

    Raises ModelMismatch if this machine's model is not the pipeline's, else ModelError.
    """
    # Under the lock, so that many first searches at once load the model once.
    with _lock:
        found = _encoders.pop(pipeline.model_fingerprint, None) or QueryEncoder(pipeline)
        _encoders[pipeline.model_fingerprint] = found
        if len(_encoders) > MOST_MODELS:
            _encoders.popitem(last=False)
        return found
