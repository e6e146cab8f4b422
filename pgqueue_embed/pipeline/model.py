"""The model of a pipeline: fitted to it, and found again on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pgqueue_embed.chunking import Chunker
from pgqueue_embed.embedding import (
    EmbeddingModel,
    Fingerprint,
    ModelUse,
    ResolvedModel,
    as_folder,
    fingerprint,
    refuse_unsuited,
    resolve_model,
)
from pgqueue_embed.errors import ModelMismatch, UsageError
from pgqueue_embed.log import get_logger
from pgqueue_embed.pipeline.model_identity import ModelIdentity, kept_dimensions
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.rules import NO_PROMPT
from pgqueue_embed.pipeline.spec import USE_OPTIONS, PipelineSpec
from pgqueue_embed.pipeline.template import unescaped


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A pipeline to make, with chunks that its model reads."""

    spec: PipelineSpec
    identity: ModelIdentity
    model: EmbeddingModel


def use_of(spec: PipelineSpec) -> ModelUse:
    """Return how a pipeline wants its model to be used."""
    return use_of_options({name: getattr(spec, name) for name in USE_OPTIONS})


def use_of_options(given: Mapping[str, Any]) -> ModelUse:
    """Return the use of a model that is said by USE_OPTIONS."""
    return ModelUse(
        document_prompt=_prompt(given["document_prompt"]),
        query_prompt=_prompt(given["query_prompt"]),
        control_tokens=given["control_tokens"],
        pooling=given["pooling"],
    )


def _prompt(said: str | None) -> str | None:
    if said is None:
        return None
    return "" if said == NO_PROMPT else unescaped(said)


def fit_model(spec: PipelineSpec, model_reference: str, revision: str | None = None) -> Fitted:
    """Load the model, fp32 on the CPU, and let it read a chunk as long as they may be.

    Raises ModelError, or UsageError for too long chunks.
    """
    resolved = resolve_model(model_reference, revision=revision)
    model = EmbeddingModel.reference(resolved, use=use_of(spec))
    refuse_unsuited(model.facts)
    identity = _identity(resolved, model)
    kept_dimensions(spec, identity)
    fitted = _fitted(spec, model)
    model.try_chunk_of(fitted.chunk_tokens)
    return Fitted(spec=fitted, identity=identity, model=model)


def _fitted(spec: PipelineSpec, model: EmbeddingModel) -> PipelineSpec:
    """Return `spec` with chunks that the model reads: all it can, where nothing is cut."""
    if spec.chunking == "none":
        return replace(spec, chunk_tokens=model.content_budget, overlap_tokens=0)
    if spec.chunk_tokens > model.content_budget:
        raise UsageError(
            f"--chunk-size {spec.chunk_tokens} does not fit the model: it reads"
            f" {model.max_sequence_tokens} tokens, {model.content_budget} of them text;"
            f" give --chunk-size {model.content_budget} or less"
        )
    return spec


def _identity(resolved: ResolvedModel, model: EmbeddingModel) -> ModelIdentity:
    files = fingerprint(resolved.path)
    return ModelIdentity(
        name=resolved.name,
        revision=resolved.revision,
        fingerprint=files.digest,
        files=dict(files.files),
        dimensions=model.dimensions,
    )


def check_local_model(pipeline: Pipeline, model_path: str | None = None) -> ResolvedModel:
    """Return this machine's model of `pipeline`; raises ModelMismatch when it is another one.

    `model_path` is a folder, whatever it looks like.
    """
    reference = as_folder(model_path) if model_path else pipeline.model
    resolved = resolve_model(reference, revision=pipeline.model_revision)
    local = fingerprint(resolved.path)
    if local.digest != pipeline.model_fingerprint:
        wanted = Fingerprint(digest=pipeline.model_fingerprint, files=pipeline.model_files)
        if local.continues(wanted):
            _log_continued(pipeline)
            return resolved
        raise ModelMismatch(
            f"the model at {resolved.path} is not the one of pipeline '{pipeline.name}':"
            f" {', '.join(local.difference(wanted))} differ; install the same model, or name its"
            " folder with --model-path"
        )
    return resolved


def _log_continued(pipeline: Pipeline) -> None:
    get_logger().warning(
        "model fingerprint of an earlier version, without the files of its adapter",
        pipeline=pipeline.name,
    )


def make_chunker(model: EmbeddingModel, pipeline: Pipeline) -> Chunker:
    """Return the chunker of `pipeline`."""
    return Chunker(
        model.tokenizer,
        max_tokens=pipeline.spec.chunk_tokens,
        overlap_tokens=pipeline.spec.overlap_tokens,
        whole=pipeline.spec.chunking == "none",
        control_tokens=pipeline.spec.control_tokens,
    )
