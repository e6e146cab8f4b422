"""Making a pipeline: tables and model are checked before anything is made."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokenizers import Tokenizer

from pgqueue_embed import capture
from pgqueue_embed.connect import Connection
from pgqueue_embed.embedding import (
    EmbeddingModel,
    ResolvedModel,
    fingerprint,
    missing_prompts,
    refuse_unsuited,
    resolve_model,
)
from pgqueue_embed.errors import UsageError
from pgqueue_embed.migrate import check_schema
from pgqueue_embed.pipeline_row import ModelIdentity, Records, kept_dimensions
from pgqueue_embed.pipelines import check_tables, create_pipeline
from pgqueue_embed.settings import Pipeline
from pgqueue_embed.spec import PipelineSpec
from pgqueue_embed.unknown_tokens import describe_unknown_tokens


@dataclass(frozen=True, kw_only=True)
class Created:
    """A new pipeline, and what to know about its model: its grasp of the text, its prompts."""

    pipeline: Pipeline
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A pipeline that can be made: its tables are checked, and its model is on this machine."""

    spec: PipelineSpec
    records: Records
    model: ModelIdentity
    tokenizer: Tokenizer | None
    notes: tuple[str, ...]


def create(
    connection: Connection, spec: PipelineSpec, model_reference: str, *, sync: bool = False
) -> Created:
    """Check tables and model, and make the pipeline and its target table, both or neither.

    With `sync`, the triggers that capture changes of the source are made along. Raises UsageError
    for what is wrong with the tables or the chunk size, ModelError for a model that is not to be
    had.
    """
    check_schema(connection)
    return make(connection, prepare(connection, spec, model_reference), sync=sync)


def make(connection: Connection, prepared: Prepared, *, sync: bool = False) -> Created:
    """Make the pipeline and its target table, both or neither; raises as `create_pipeline` does.

    With `sync`, the triggers too: see `capture.install`.
    """
    with connection.transaction():
        pipeline = create_pipeline(connection, prepared.spec, prepared.records, prepared.model)
        if sync:
            capture.install(connection, pipeline)
    unknown = describe_unknown_tokens(connection, pipeline, prepared.tokenizer)
    warnings = (*prepared.notes, *([unknown] if unknown else []))
    return Created(pipeline=pipeline, warnings=warnings)


def prepare(
    connection: Connection, spec: PipelineSpec, model_reference: str, revision: str | None = None
) -> Prepared:
    """Check tables and model; raises as `create` does, and makes nothing."""
    records = check_tables(connection, spec)
    fitted = fit_model(spec, model_reference, revision)
    return Prepared(
        spec=fitted.spec,
        records=records,
        model=fitted.identity,
        tokenizer=fitted.model.tokenizer,
        notes=_notes(fitted.model),
    )


def _notes(model: EmbeddingModel) -> tuple[str, ...]:
    prompts = missing_prompts(model.facts)
    return (*model.notes, *([prompts] if prompts else []))


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A pipeline to make, with chunks that its model reads."""

    spec: PipelineSpec
    identity: ModelIdentity
    model: EmbeddingModel


def fit_model(spec: PipelineSpec, model_reference: str, revision: str | None = None) -> Fitted:
    """Load the model, fp32 on the CPU, and let it read a chunk as long as they may be.

    Raises ModelError, or UsageError for too long chunks.
    """
    resolved = resolve_model(model_reference, revision=revision)
    model = EmbeddingModel.load(resolved, device="cpu", precision="fp32")
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
