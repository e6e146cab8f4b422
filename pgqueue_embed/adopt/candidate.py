"""A table that is to be adopted: checked, with the model that its vectors should come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pgqueue_embed.adopt.judge import Judge
from pgqueue_embed.adopt.table_check import StoredTable, check_dimensions, check_table
from pgqueue_embed.chunking import Chunk
from pgqueue_embed.db.migrate import check_schema
from pgqueue_embed.db.session import Connection
from pgqueue_embed.embedding import EmbeddingModel
from pgqueue_embed.errors import ModelError, UsageError
from pgqueue_embed.pipeline.catalog import load_pipeline, pipeline_names
from pgqueue_embed.pipeline.model import check_local_model, fit_model, use_of
from pgqueue_embed.pipeline.model_identity import ModelIdentity
from pgqueue_embed.pipeline.option import options_of
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.row import SourceShape, unmade
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.pipeline.spec_checks import checked
from pgqueue_embed.queue.adoptions import read_adoption
from pgqueue_embed.source.check import check_source
from pgqueue_embed.untrusted.shell import command


class ReferenceModel(Protocol):
    """What is needed of a model, fp32 on the CPU; see embedding.EmbeddingModel."""

    @property
    def tokenizer(self) -> Tokenizer | None: ...
    @property
    def content_budget(self) -> int: ...
    def forward(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Return unit vectors of shape (chunks, dimensions)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A table to adopt, and the pipeline that it would be the target of."""

    spec: PipelineSpec
    shape: SourceShape
    table: StoredTable
    identity: ModelIdentity
    model: ReferenceModel

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline as it would be, to read its tables by; there is no such row yet."""
        return unmade(self.spec, self.shape, self.identity)

    def judge(self) -> Judge:
        """Return what judges the records of the pipeline."""
        return make_judge(self.model, self.pipeline)


def prepare_adoption(connection: Connection, spec: PipelineSpec, model_reference: str) -> Candidate:
    """Check tables and model; makes nothing.

    Raises UsageError for what is wrong with the tables or the settings, ModelError for a model that
    is not to be had.
    """
    check_schema(connection)
    spec = checked(spec)
    shape, table = check_adoptable(connection, spec)
    fitted = fit_model(replace(spec, vector_type=table.vector_type), model_reference)
    check_dimensions(spec, table, fitted.identity.dimensions)
    return Candidate(
        spec=fitted.spec,
        shape=shape,
        table=table,
        identity=fitted.identity,
        model=fitted.model,
    )


def check_adoptable(connection: Connection, spec: PipelineSpec) -> tuple[SourceShape, StoredTable]:
    """Return what source and target hold; raises UsageError unless the one can be adopted."""
    _check_options(spec)
    shape = check_source(connection, spec)
    return shape, check_table(connection, spec, shape.key)


# What can be said of chunks that are there. The rest is about making them, or cannot be told from
# them, as what the model read around a chunk.
ADOPTABLE_SETTINGS = (
    *("name", "source", "target", "id_fields", "text_fields", "template", "where", "columns"),
    *("chunking", "chunk_tokens", "overlap_tokens", "vector_type", "max_attempts", "priority"),
    *("document_prompt", "query_prompt", "control_tokens", "pooling"),
)


def _check_options(spec: PipelineSpec) -> None:
    for each in options_of(PipelineSpec):
        value = getattr(spec, each.field)
        if each.field not in ADOPTABLE_SETTINGS and value != (
            () if each.type is list else each.default
        ):
            flag = each.said(value) if each.type is bool else each.flag
            raise UsageError(
                f"{flag}: a table that is there cannot be adopted with it; leave it out, or embed"
                " anew with pgembed create"
            )


def local_model(pipeline: Pipeline) -> EmbeddingModel:
    """Return this machine's model of a pipeline whose adoption goes on, fp32 on the CPU.

    Raises ModelMismatch when it is another one.
    """
    return EmbeddingModel.reference(check_local_model(pipeline), use=use_of(pipeline.spec))


def make_judge(model: ReferenceModel, pipeline: Pipeline) -> Judge:
    """Return what judges the records of `pipeline`; ModelError for a model without a tokenizer."""
    if model.tokenizer is None:
        raise ModelError(f"model {pipeline.model} has no fast tokenizer to cut documents by")
    return Judge(model.tokenizer, pipeline, content_budget=model.content_budget)


def resumable(connection: Connection, name: str, spec: PipelineSpec | None) -> Pipeline | None:
    """Return the pipeline called `name` if its adoption was interrupted, None if there is none.

    Raises UsageError if it is no longer or was never adopted, or other than `spec` wants.
    """
    if name not in pipeline_names(connection):
        return None
    pipeline = load_pipeline(connection, name)
    adoption = read_adoption(connection, pipeline)
    if adoption is None or adoption.is_finished:
        how = "was created, not adopted" if adoption is None else "is adopted already"
        raise UsageError(
            f"pipeline '{name}' {how}; what has changed is queued by: {command('enqueue', name)}"
        )
    if spec is not None and replace(spec, vector_type=pipeline.spec.vector_type) != pipeline.spec:
        raise UsageError(
            f"pipeline '{name}' is being adopted with other settings; go on with"
            f" {command('adopt', name)} alone, or begin anew after: {command('drop', name)}"
        )
    return pipeline
