"""Making a pipeline: tables and model are checked before anything is made."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

import psycopg
from tokenizers import Tokenizer

from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.faults import on_users_tables
from pgqueue_embed.db.locks import in_short_waits
from pgqueue_embed.db.migrate import check_schema
from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.vectors import VectorCodec
from pgqueue_embed.embedding import missing_prompts
from pgqueue_embed.errors import PgembedError, UsageError
from pgqueue_embed.pipeline.catalog import insert_pipeline, load_pipeline, pipeline_names
from pgqueue_embed.pipeline.model import Fitted, fit_model, use_of
from pgqueue_embed.pipeline.model_identity import (
    HALFVEC_DIMENSIONS,
    ModelIdentity,
    kept_dimensions,
    with_vector_type,
)
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.row import SourceShape, to_row
from pgqueue_embed.pipeline.spec import AUTO, PipelineSpec
from pgqueue_embed.pipeline.spec_checks import checked
from pgqueue_embed.queue import capture
from pgqueue_embed.queue.captured_columns import condition_names
from pgqueue_embed.source.check import check_source
from pgqueue_embed.source.unknown_tokens import describe_unknown_tokens
from pgqueue_embed.target import new_target
from pgqueue_embed.target.column_check import find_column
from pgqueue_embed.untrusted.shell import command
from pgqueue_embed.vector_search.index import check_declared


@dataclass(frozen=True, kw_only=True)
class Created:
    """A new pipeline, and what to know about its model: its grasp of the text, its prompts."""

    pipeline: Pipeline
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A pipeline that can be made: its tables are checked, and its model is on this machine."""

    spec: PipelineSpec
    shape: SourceShape
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
        pipeline = create_pipeline(connection, prepared.spec, prepared.shape, prepared.model)
        if sync:
            capture.install(connection, pipeline)
    unknown = _unknown_tokens(connection, pipeline, prepared.tokenizer)
    warnings = (*prepared.notes, *([unknown] if unknown else []))
    return Created(pipeline=pipeline, warnings=warnings)


def _unknown_tokens(
    connection: Connection, pipeline: Pipeline, tokenizer: Tokenizer | None
) -> str | None:
    """Return what to know about the model's grasp of the text; a courtesy that fails nothing.

    A pipeline that is made is made, whatever a record of its source is like.
    """
    try:
        with connection.transaction():
            connection.execute("set local statement_timeout = '30s'")
            return describe_unknown_tokens(connection, pipeline, tokenizer)
    except (PgembedError, psycopg.Error) as error:
        why = first_line(error)
        return f"how much of the text {pipeline.model} knows could not be measured: {why}"


def prepare(
    connection: Connection, spec: PipelineSpec, model_reference: str, revision: str | None = None
) -> Prepared:
    """Check tables and model; raises as `create` does, and makes nothing."""
    spec = checked(spec)
    shape = check_tables(connection, spec)
    fitted = fit_model(spec, model_reference, revision)
    settled = settle_vector_type(connection, fitted.spec, fitted.identity)
    half = _lacks_halfvec(connection, fitted, settled)
    return Prepared(
        spec=settled,
        shape=shape,
        model=fitted.identity,
        tokenizer=fitted.model.tokenizer,
        notes=(*_notes(fitted), *([half] if half else [])),
    )


def _notes(fitted: Fitted) -> tuple[str, ...]:
    prompts = missing_prompts(fitted.model.facts, use_of(fitted.spec))
    return (*fitted.model.notes, *([prompts] if prompts else []))


def settle_vector_type(
    connection: Connection, spec: PipelineSpec, model: ModelIdentity
) -> PipelineSpec:
    """Return `spec` with a type for its vectors, if it has none yet.

    That of the column which they go into, if it is there; else halfvec for long ones, where the
    server has it.
    """
    if spec.vector_type != AUTO:
        return spec
    if spec.into_column is not None:
        found = find_column(connection, spec.source, spec.into_column)
        if found is not None:
            return replace(spec, vector_type=found.type_name)
    return with_vector_type(spec, model, has_halfvec=VectorCodec(connection).supports("halfvec"))


def _lacks_halfvec(connection: Connection, fitted: Fitted, settled: PipelineSpec) -> str | None:
    """Return what to know where vectors take twice the bytes for an old extension."""
    codec = VectorCodec(connection)
    dimensions = kept_dimensions(settled, fitted.identity)
    is_left_open = fitted.spec.vector_type == AUTO and dimensions >= HALFVEC_DIMENSIONS
    if not is_left_open or codec.supports("halfvec"):
        return None
    return (
        f"pgvector {codec.version} on this server has no halfvec (it came with 0.7), so that these"
        " vectors are of type vector and take twice the bytes; better upgrade the extension before"
    )


# The name of the pipeline or its target is taken; or that of the type of the target's rows, where
# another session commits between two looks of PostgreSQL's.
TAKEN = (
    psycopg.errors.DuplicateTable,
    psycopg.errors.DuplicateColumn,
    psycopg.errors.DuplicateObject,
    psycopg.errors.UniqueViolation,
)

# Why a target cannot be made: a missing right, or more dimensions than a vector can have.
CANNOT_CREATE = (
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.InvalidForeignKey,
    psycopg.errors.InvalidTableDefinition,
    psycopg.errors.InvalidObjectDefinition,
    psycopg.DataError,
)


def check_tables(connection: Connection, spec: PipelineSpec) -> SourceShape:
    """Return key and document of the source, once all about the tables is checked.

    Raises UsageError for whatever `create_pipeline` would trip over later, PipelineFault for a
    source that cannot be read.
    """
    with on_users_tables(connection, f"reading {spec.source}"):
        shape = check_source(connection, spec)
    check_condition_is_apart(connection, spec, spec.into_column)
    _check_name_is_free(connection, spec)
    new_target(spec, shape.key, shape.document).check(connection)
    codec = VectorCodec(connection)
    if spec.vector_type != AUTO and not codec.supports(spec.vector_type):
        raise UsageError(
            f"pgvector {codec.version} on this server has no {spec.vector_type}"
            " (it came with 0.7); use --vector-type vector or upgrade the extension"
        )
    return shape


def check_condition_is_apart(
    connection: Connection, spec: PipelineSpec, into_column: str | None
) -> None:
    """Raise UsageError if the condition of `spec` names the column that the vectors go into.

    A role that may make no view in schema pgembed, by which that is found, has to know it.
    """
    if spec.where is None or into_column is None:
        return
    with suppress(psycopg.errors.InsufficientPrivilege):
        if condition_names(connection, spec.source, spec.where, into_column):
            raise UsageError(
                f"--where names {into_column}, which the vectors go into: what is embedded would"
                " be no record any more, and lose its vector; leave that out, since what is"
                " embedded is not embedded again"
            )


def _check_name_is_free(connection: Connection, spec: PipelineSpec) -> None:
    if spec.name in pipeline_names(connection):
        raise UsageError(
            f"pipeline '{spec.name}' exists already; use --if-not-exists to keep it,"
            f" or remove it: {command('drop', spec.name)}"
        )


def create_pipeline(
    connection: Connection, spec: PipelineSpec, shape: SourceShape, model: ModelIdentity
) -> Pipeline:
    """Make the pipeline and its target, both or neither, and return the pipeline.

    Raises UsageError when the role may not create the target, another pipeline has it, or another
    create was faster.
    """
    spec = settle_vector_type(connection, spec, model)
    target = new_target(spec, shape.key, shape.document)
    dimensions = kept_dimensions(spec, model)
    check_declared(spec, dimensions)

    def make() -> None:
        codec = VectorCodec(connection)
        is_made = target.create(connection, codec, dimensions=dimensions, pipeline_name=spec.name)
        found = {"target_is_made": is_made, "chunk_text": target.text_query}
        insert_pipeline(connection, {**to_row(spec, shape, model), **found})

    try:
        # A foreign key locks the source for a moment.
        used = spec.source if spec.foreign_key else spec.target
        in_short_waits(connection, make, table=used)
    except TAKEN:
        raise UsageError(
            f"pipeline '{spec.name}' or {target} was created by another session just now,"
            f" or another pipeline writes to {target}"
        ) from None
    except CANNOT_CREATE as error:
        raise UsageError(f"cannot create {target}: {first_line(error)}") from None
    return load_pipeline(connection, spec.name)
