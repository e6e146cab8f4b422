"""The origin of a search: a vector, or a stored record whose like is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from pgqueue_embed.db.extension import extension_read
from pgqueue_embed.db.steps import Step, Steps
from pgqueue_embed.errors import NotFound, UsageError
from pgqueue_embed.pipeline.canonical_keys import canonical_keys
from pgqueue_embed.pipeline.key_values import key_text
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.target import target_of


@dataclass(frozen=True)
class LikeRecord:
    """A stored record by its key, in its own type or as text; it is not to be found itself."""

    key: Any


# A vector has shape (dimensions,), and length 1.
Near: TypeAlias = NDArray[np.float32] | LikeRecord


@dataclass(frozen=True, kw_only=True)
class Origin:
    """From where distances are counted; with a record's `key_text`, that of its `chunks` chunks."""

    vector: NDArray[np.float32]
    key_text: str | None = None
    chunks: int = 0


# All its chunks count alike: their mean has the direction of their sum.
MEAN = """
select {key_text}, {schema}.avg({embedding})::text, count(*)
from {rows} as target
where {key} = {wanted} and {embedding} is not null
group by 1
"""


def origin_of(pipeline: Pipeline, near: Near) -> Steps[Origin]:
    """Return where a search starts.

    Raises NotFound for a record that has no vectors, UsageError for what can be no key of one.
    """
    if not isinstance(near, LikeRecord):
        return Origin(vector=near)
    [given] = yield from canonical_keys(pipeline, [key_text(pipeline.key, near.key)])
    extension = yield from extension_read()
    names = pipeline.spec.columns.fulltext_id
    query = sql.SQL(MEAN).format(
        key_text=pipeline.key.text("target", names),
        schema=sql.Identifier(extension.schema),
        embedding=sql.Identifier("target", pipeline.spec.columns.embedding),
        rows=target_of(pipeline).vector_rows,
        key=pipeline.key.of("target", names),
        wanted=pipeline.key.value(sql.SQL("%(key)s::text")),
    )
    rows = yield Step(query, {"key": given})
    if not rows:
        raise NotFound(f"{pipeline.name} has no vectors of a record {given}")
    [(found, mean, chunks)] = rows
    vector = np.array(mean[1:-1].split(","), np.float64)
    if not vector.any():
        raise UsageError(f"the chunks of record {given} are like nothing: their mean is no vector")
    return Origin(vector=_unit(vector), key_text=found, chunks=chunks)


def checked_vector(pipeline: Pipeline, given: Sequence[float] | NDArray[Any]) -> NDArray[Any]:
    """Return a vector at length 1, shape (dimensions,).

    Raises UsageError for what none of the pipeline's model is.
    """
    try:
        vector = np.asarray(given, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise UsageError("the vector is no list of numbers") from None
    if vector.shape != (pipeline.dimensions,):
        has = f"{len(vector):,} numbers" if vector.ndim == 1 else f"the shape {vector.shape}"
        raise UsageError(
            f"the vector has {has}, and those of {pipeline.name} have {pipeline.dimensions:,}; it"
            f" has to come from the same model, {pipeline.model}"
        )
    if not np.isfinite(vector).all() or not vector.any():
        raise UsageError("the vector is no direction: it has a NaN or infinity, or only zeros")
    return _unit(vector)


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return a vector of length 1: pgvector multiplies in float32, and may round to float16."""
    scaled = vector / np.abs(vector).max()
    unit: NDArray[np.float32] = (scaled / np.linalg.norm(scaled)).astype(np.float32)
    return unit
