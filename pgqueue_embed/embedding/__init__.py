"""From chunks to vectors: one model, owned by one thread. Importing this loads no torch."""

from pgqueue_embed.embedding.device_thread import DeviceThread
from pgqueue_embed.embedding.embedded import Embedded
from pgqueue_embed.embedding.facts import ModelFacts, refuse_unsuited
from pgqueue_embed.embedding.families import missing_prompts
from pgqueue_embed.embedding.fingerprint import Fingerprint, fingerprint
from pgqueue_embed.embedding.heap import keep_heap
from pgqueue_embed.embedding.learnt import Memory
from pgqueue_embed.embedding.model import EmbeddingModel
from pgqueue_embed.embedding.model_use import AS_ITS_FILES_SAY, ModelUse
from pgqueue_embed.embedding.resolve import ResolvedModel, as_folder, full_name, resolve_model
from pgqueue_embed.embedding.rows import NonFiniteVectors
from pgqueue_embed.embedding.vector_cache import VectorCache

__all__ = [
    "AS_ITS_FILES_SAY",
    "DeviceThread",
    "Embedded",
    "EmbeddingModel",
    "Fingerprint",
    "Memory",
    "ModelFacts",
    "ModelUse",
    "NonFiniteVectors",
    "ResolvedModel",
    "VectorCache",
    "as_folder",
    "fingerprint",
    "full_name",
    "keep_heap",
    "missing_prompts",
    "refuse_unsuited",
    "resolve_model",
]
