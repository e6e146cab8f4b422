"""The identity of a model as a pipeline stores it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.spec import AUTO, PipelineSpec

# From so many dimensions up, a row with its text hardly fits half a page, or no page at all.
HALFVEC_DIMENSIONS = 768


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """What a pipeline remembers of its model."""

    name: str
    revision: str | None
    fingerprint: str
    files: dict[str, str]
    dimensions: int


def kept_dimensions(spec: PipelineSpec, model: ModelIdentity) -> int:
    """Return how many dimensions the vectors of such a pipeline have.

    Raises UsageError if it were to keep more than the model gives.
    """
    wanted = spec.truncate_dim or model.dimensions
    if wanted > model.dimensions:
        raise UsageError(
            f"--truncate-dim {wanted}: the vectors of {model.name} have {model.dimensions:,}"
            " dimensions; give fewer, or leave it out"
        )
    return wanted


def with_vector_type(
    spec: PipelineSpec, model: ModelIdentity, *, has_halfvec: bool
) -> PipelineSpec:
    """Return `spec` with a type for its vectors: the one it has, or one by their dimensions."""
    if spec.vector_type != AUTO:
        return spec
    is_half = has_halfvec and kept_dimensions(spec, model) >= HALFVEC_DIMENSIONS
    return replace(spec, vector_type="halfvec" if is_half else "vector")
