"""Vectors in the form of OpenAI, so that any client can ask for those of a pipeline's model."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.search_server.bodies import text_field
from pgqueue_embed.search_server.query_batches import Encoded

# `user` is for the statistics of others.
EMBEDDING_FIELDS = ("model", "input", "encoding_format", "dimensions", "user")

# As many as OpenAI takes.
MOST_INPUTS = 2_048


@dataclass(frozen=True, kw_only=True)
class EmbeddingRequest:
    """Texts to encode by the model of a pipeline, as numbers or as base64 of float32."""

    model: str
    texts: list[str]
    encoding_format: str
    dimensions: int | None

    def check(self, pipeline: Pipeline) -> None:
        """Raise UsageError for another number of dimensions than the pipeline's."""
        if self.dimensions is not None and self.dimensions != pipeline.dimensions:
            raise UsageError(
                f"dimensions {self.dimensions}: the vectors of {pipeline.name} have"
                f" {pipeline.dimensions}; leave it out"
            )


def embedding_request(given: Mapping[str, Any]) -> EmbeddingRequest:
    """Return what a JSON object asks for; raises UsageError for what no request can be."""
    encoding = given.get("encoding_format")
    encoding = "float" if encoding is None else encoding
    if encoding not in ("float", "base64"):
        raise UsageError(f"encoding_format {encoding!r}: give float or base64")
    dimensions = given.get("dimensions")
    if dimensions is not None and (isinstance(dimensions, bool) or not isinstance(dimensions, int)):
        raise UsageError(f"dimensions {dimensions!r}: give a whole number, or leave it out")
    return EmbeddingRequest(
        model=text_field(given, "model"),
        texts=_texts(given.get("input")),
        encoding_format=encoding,
        dimensions=dimensions,
    )


def _texts(given: Any) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise UsageError("input: give a text, or a list of them")
    if isinstance(texts[0], (int, list)):
        raise UsageError(
            "input: give texts; lists of tokens are of another model's tokenizer (in LangChain:"
            " check_embedding_ctx_length=False)"
        )
    if not all(isinstance(each, str) for each in texts):
        raise UsageError("input: give a text, or a list of them")
    if len(texts) > MOST_INPUTS:
        raise UsageError(f"input: {len(texts):,} texts; give at most {MOST_INPUTS:,} at once")
    return texts


def embedding_answer(asked: EmbeddingRequest, encoded: Encoded) -> dict[str, Any]:
    """Return the vectors as OpenAI answers."""
    write = _base64 if asked.encoding_format == "base64" else _numbers
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": write(vector)}
            for index, vector in enumerate(encoded.vectors)
        ],
        "model": asked.model,
        "usage": {"prompt_tokens": encoded.tokens, "total_tokens": encoded.tokens},
    }


def model_answer(pipeline: Pipeline) -> dict[str, Any]:
    """Return a pipeline as a model of OpenAI's; `model` and `dimensions` are ours."""
    return {
        "id": pipeline.name,
        "object": "model",
        "created": 0,
        "owned_by": "pgembed",
        "model": pipeline.model,
        "dimensions": pipeline.dimensions,
    }


def _numbers(vector: NDArray[np.float32]) -> list[float]:
    numbers: list[float] = vector.tolist()
    return numbers


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
