"""The pipeline that an estimate is about, there or yet to be made, with this machine's model."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Tokenizer

from pgqueue_embed.chunking import Chunker
from pgqueue_embed.db.faults import on_users_tables
from pgqueue_embed.db.session import Connection
from pgqueue_embed.embedding import EmbeddingModel, ResolvedModel, resolve_model
from pgqueue_embed.errors import ModelError
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.model import check_local_model, fit_model, make_chunker, use_of
from pgqueue_embed.pipeline.model_identity import with_vector_type
from pgqueue_embed.pipeline.partitioning import parse_partitioning
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.row import unmade
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.source.check import check_source
from pgqueue_embed.target.parts import check_bounds


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A pipeline, what cuts its texts, and where its model lies."""

    pipeline: Pipeline
    chunker: Chunker
    resolved: ResolvedModel


def of_pipeline(connection: Connection, name: str) -> Subject:
    """Return a pipeline that is there.

    Raises UsageError where there is none of that name, ModelMismatch or ModelError for its model.
    """
    pipeline = load_pipeline(connection, name)
    resolved = check_local_model(pipeline)
    model = EmbeddingModel.reference(resolved, use=use_of(pipeline.spec))
    return _subject(pipeline, model, resolved)


def of_spec(connection: Connection, spec: PipelineSpec, model_reference: str) -> Subject:
    """Return a pipeline as it would be made, whether its name is free or not.

    Raises UsageError for what is wrong with the source, the parts or the chunk size, ModelError for
    a model that is not to be had.
    """
    with on_users_tables(connection, f"reading {spec.source}"):
        shape = check_source(connection, spec)
    if spec.partition_by is not None:
        check_bounds(connection, parse_partitioning(spec.partition_by), shape.key)
    fitted = fit_model(spec, model_reference)
    settled = with_vector_type(fitted.spec, fitted.identity, has_halfvec=True)
    pipeline = unmade(settled, shape, fitted.identity)
    return _subject(pipeline, fitted.model, resolve_model(model_reference))


def _subject(pipeline: Pipeline, model: EmbeddingModel, resolved: ResolvedModel) -> Subject:
    tokenizer: Tokenizer | None = model.tokenizer
    if tokenizer is None:
        raise ModelError(f"model {pipeline.model} has no fast tokenizer to cut documents by")
    return Subject(pipeline=pipeline, chunker=make_chunker(model, pipeline), resolved=resolved)
