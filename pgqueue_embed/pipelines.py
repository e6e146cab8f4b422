"""Pipelines: made with their target table, loaded, paused, resumed and dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import psycopg
from psycopg import sql

from pgqueue_embed import capture
from pgqueue_embed.connect import Connection, dependents, first_line
from pgqueue_embed.errors import PipelineReplaced, UsageError
from pgqueue_embed.faults import on_users_tables
from pgqueue_embed.foreign_text import MOST_STORED_CHARACTERS, printable
from pgqueue_embed.locks import in_short_waits
from pgqueue_embed.pipeline_row import (
    COLUMNS,
    ModelIdentity,
    Records,
    columns_json,
    from_row,
    kept_dimensions,
    to_row,
)
from pgqueue_embed.settings import Pipeline
from pgqueue_embed.source_check import check_source
from pgqueue_embed.spec import PipelineSpec
from pgqueue_embed.target import new_target, target_of
from pgqueue_embed.vectors import VectorCodec

# Somebody has the name of the pipeline, or its target.
TAKEN = (
    psycopg.errors.DuplicateTable,
    psycopg.errors.DuplicateColumn,
    psycopg.errors.UniqueViolation,
)

# Why a target cannot be made: a missing right, or more dimensions than a vector can have.
REFUSALS = (
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.InvalidForeignKey,
    psycopg.errors.InvalidTableDefinition,
    psycopg.DataError,
)


def check_tables(connection: Connection, spec: PipelineSpec) -> Records:
    """Return key and document of the source, once all about the tables is checked.

    Raises UsageError for whatever `create_pipeline` would trip over later, PipelineFault for a
    source that cannot be read.
    """
    with on_users_tables(connection, f"reading {spec.source}"):
        records = check_source(connection, spec)
    _check_name_is_free(connection, spec)
    new_target(spec, records.key, records.document).check(connection)
    codec = VectorCodec(connection)
    if not codec.supports(spec.vector_type):
        raise UsageError(
            f"pgvector {codec.version} on this server has no {spec.vector_type}"
            " (it came with 0.7); use --vector-type vector or upgrade the extension"
        )
    return records


def _check_name_is_free(connection: Connection, spec: PipelineSpec) -> None:
    if spec.name in pipeline_names(connection):
        raise UsageError(
            f"pipeline '{spec.name}' exists already; use --if-not-exists to keep it,"
            f" or remove it: pgembed drop {spec.name}"
        )


def create_pipeline(
    connection: Connection, spec: PipelineSpec, records: Records, model: ModelIdentity
) -> Pipeline:
    """Make the pipeline and its target, both or neither, and return the pipeline.

    Raises UsageError when the role may not create the target, another pipeline has it, or another
    create was faster.
    """
    target = new_target(spec, records.key, records.document)
    dimensions = kept_dimensions(spec, model)

    def make() -> None:
        codec = VectorCodec(connection)
        is_made = target.create(connection, codec, dimensions=dimensions, pipeline_name=spec.name)
        insert_pipeline(connection, {**to_row(spec, records, model), "target_is_made": is_made})

    try:
        # A foreign key locks the source for a moment.
        used = spec.source if spec.foreign_key else spec.target
        in_short_waits(connection, make, table=used)
    except TAKEN:
        raise UsageError(
            f"pipeline '{spec.name}' or {target} was created by somebody else just now, or another"
            f" pipeline writes to {target}"
        ) from None
    except REFUSALS as error:
        raise UsageError(f"cannot create {target}: {first_line(error)}") from None
    return load_pipeline(connection, spec.name)


def insert_pipeline(connection: Connection, values: Mapping[str, object]) -> None:
    """Insert the row of a pipeline, in the transaction that has its target."""
    query = sql.SQL("insert into pgembed.pipelines ({}) values ({})").format(
        sql.SQL(", ").join(map(sql.Identifier, values)),
        sql.SQL(", ").join(map(sql.Placeholder, values)),
    )
    connection.execute(query, values)


def pipeline_names(connection: Connection) -> list[str]:
    """Return the names of all pipelines, in order."""
    return [name for (name,) in connection.execute("select name from pgembed.pipelines order by 1")]


def load_pipelines(connection: Connection, names: Sequence[str] = ()) -> list[Pipeline]:
    """Return the pipelines called `names`, or all; raises UsageError for an unknown name."""
    query = sql.SQL("select {} from pgembed.pipelines order by id")
    rows = connection.execute(query.format(sql.SQL(", ").join(map(sql.Identifier, COLUMNS))))
    pipelines = {pipeline.name: pipeline for pipeline in map(from_row, rows)}
    for name in names:
        if name not in pipelines:
            known = ", ".join(pipelines) or "none yet; make one: pgembed create"
            raise UsageError(f"there is no pipeline '{name}'; there is {known}")
    return [pipeline for pipeline in pipelines.values() if not names or pipeline.name in names]


def load_pipeline(connection: Connection, name: str) -> Pipeline:
    """Return the pipeline called `name`; raises UsageError when there is none."""
    return load_pipelines(connection, [name])[0]


STILL_THE_SAME = """
select exists (
    select
    from pgembed.pipelines
    where id = %s
        and target_schema = %s
        and target_table = %s
        and target_columns ->> 'embedding' = %s
        and key_columns = %s
)
"""


def is_current(connection: Connection, pipeline: Pipeline) -> bool:
    """Return whether `pipeline` is there, and has target and key as when it was loaded.

    The target is another one once generations have been switched, and the key may follow that of
    the source.
    """
    target = pipeline.target
    place = (target.schema, target.name, pipeline.columns.embedding)
    values = (pipeline.id, *place, columns_json(pipeline.key.columns))
    (same,) = connection.execute(STILL_THE_SAME, values).fetchone() or (False,)
    return bool(same)


# How the reason of a pause ends that a fault caused, and no person.
MEND_AND_RESUME = "; mend it and run: pgembed resume "


def pause_at_fault(connection: Connection, pipeline: Pipeline, reason: str) -> None:
    """Pause a pipeline for a fault of its tables, and say how to go on."""
    pause_pipeline(connection, pipeline, f"{reason}{MEND_AND_RESUME}{pipeline.name}")


def pause_pipeline(connection: Connection, pipeline: Pipeline, reason: str) -> None:
    """Stop workers from claiming; what is claimed already is finished."""
    # By its id: a name may have been changed since the pipeline was loaded.
    connection.execute(
        "select pgembed.pause(name, %s) from pgembed.pipelines where id = %s",
        (printable(reason, MOST_STORED_CHARACTERS), pipeline.id),
    )


def is_paused(connection: Connection, pipeline: Pipeline) -> bool:
    """Return whether workers claim nothing of a pipeline."""
    query = "select state = 'paused' from pgembed.pipelines where id = %s"
    (paused,) = connection.execute(query, (pipeline.id,)).fetchone() or (False,)
    return bool(paused)


def resume_pipeline(connection: Connection, pipeline: Pipeline) -> None:
    """Let workers claim again."""
    connection.execute(
        "select pgembed.resume(name) from pgembed.pipelines where id = %s", (pipeline.id,)
    )


def keep_pipeline(connection: Connection, pipeline: Pipeline) -> None:
    """Keep the pipeline from being dropped until the transaction ends, which queues something.

    Raises PipelineReplaced if it is gone.
    """
    keep = "select from pgembed.pipelines where id = %s for key share"
    if connection.execute(keep, (pipeline.id,)).rowcount == 0:
        raise PipelineReplaced(
            f"{pipeline.name} was replaced by its next generation, or dropped, just now"
        )


def drop_pipeline(connection: Connection, pipeline: Pipeline, *, delete_vectors: bool) -> None:
    """Remove the pipeline with its queue, ledger and history, and its target if asked.

    Waits for the claims that workers hold. A next generation of it goes too, vectors and all. A
    target that was there before the pipeline is emptied, not dropped.
    """
    for each in load_pipelines(connection):
        if each.successor_of == pipeline.id:
            drop_pipeline(connection, each, delete_vectors=True)
    pause_pipeline(connection, pipeline, "it is being dropped")
    # Before anything is waited for: users write to the source meanwhile.
    capture.remove(connection, pipeline)
    with connection.transaction():
        connection.execute("set transaction isolation level read committed")
        # The cursors first: without them nothing is queued any more by a scan.
        _delete_rows(connection, "scans", pipeline)
        _delete_rows(connection, "adoptions", pipeline)
        _delete_work(connection, pipeline)
        # Behind the queue, as a switch locks it. Waits for everybody else who has queued something
        # and is not committed, and makes whoever comes later find no pipeline.
        connection.execute("select from pgembed.pipelines where id = %s for update", (pipeline.id,))
        _delete_rows(connection, "scans", pipeline)
        _delete_work(connection, pipeline)
        _delete_rows(connection, "records", pipeline)
        # Dead letters that were put back meanwhile have been waited for with their records.
        _delete_work(connection, pipeline)
        _delete_rows(connection, "batches", pipeline)
        connection.execute("delete from pgembed.pipelines where id = %s", (pipeline.id,))
        if delete_vectors:
            _drop_target(connection, pipeline)


def _drop_target(connection: Connection, pipeline: Pipeline) -> None:
    target = target_of(pipeline)
    try:
        in_short_waits(connection, lambda: target.drop(connection), table=pipeline.target)
    except psycopg.errors.DependentObjectsStillExist as error:
        raise UsageError(f"{target} is used: {dependents(error)}; drop that first") from None


def _delete_work(connection: Connection, pipeline: Pipeline) -> None:
    # The commit of a claim that this waits for may have put records back.
    while _has_work(connection, pipeline):
        _delete_rows(connection, "work", pipeline)


def _has_work(connection: Connection, pipeline: Pipeline) -> bool:
    (found,) = connection.execute(
        "select exists (select 1 from pgembed.work where pipeline_id = %s)", (pipeline.id,)
    ).fetchone() or (False,)
    return bool(found)


def _delete_rows(connection: Connection, table: str, pipeline: Pipeline) -> None:
    query = sql.SQL("delete from {} where pipeline_id = %s")
    connection.execute(query.format(sql.Identifier("pgembed", table)), (pipeline.id,))
