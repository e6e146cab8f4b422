"""Commands that prepare the database: migrate, create, enqueue, pause, resume, drop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pgqueue_embed.cli import pipeline_options as options
from pgqueue_embed.cli.options import connected
from pgqueue_embed.errors import UsageError
from pgqueue_embed.settings import DEFAULT_MODEL

if TYPE_CHECKING:
    from pgqueue_embed.connect import Connection
    from pgqueue_embed.enqueue import Selection
    from pgqueue_embed.pipelines import PipelineSpec
    from pgqueue_embed.settings import Pipeline


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    for command in (migrate, create, enqueue, pause, resume, drop):
        app.command()(connected(command))


def migrate(conninfo: str) -> None:
    """Create or upgrade schema pgembed in the database; safe from many machines at once.

    Example: pgembed migrate --dsn postgresql://app@db.lan/reports
    """
    from pgqueue_embed.migrate import migrate as apply

    applied = apply(conninfo)
    for name in applied:
        typer.echo(f"applied {name}")
    if not applied:
        typer.echo("schema pgembed is up to date")


def create(
    conninfo: str,
    name: options.PipelineName,
    source_table: options.SourceTable = None,
    target_table: options.TargetTable = None,
    db_schema: options.Schema = "public",
    id_field: options.IdField = "id",
    text_field: options.TextField = "text",
    target_column: options.TargetColumn = None,
    vector_type: options.VectorType = "vector",
    model: options.Model = DEFAULT_MODEL,
    chunk_size: options.ChunkSize = 128,
    overlap_tokens: options.OverlapTokens = 20,
    max_attempts: options.MaxAttempts = 3,
    if_not_exists: Annotated[
        bool, typer.Option("--if-not-exists", help="Keep a pipeline that is there already.")
    ] = False,
) -> None:
    """Make a pipeline: its settings and its target table.

    Example: pgembed create reports --source-table event_text --text-field foi_text
    """
    from pgqueue_embed.connect import connect
    from pgqueue_embed.migrate import check_schema
    from pgqueue_embed.pipelines import pipeline_names

    with connect(conninfo) as connection:
        check_schema(connection)
        if if_not_exists and name in pipeline_names(connection):
            typer.echo(f"pipeline {name} exists already and was left as it is")
            return
        spec = make_spec(
            name,
            source_table=source_table,
            target_table=target_table,
            db_schema=db_schema,
            id_field=id_field,
            text_field=text_field,
            target_column=target_column,
            vector_type=vector_type,
            chunk_size=chunk_size,
            overlap_tokens=overlap_tokens,
            max_attempts=max_attempts,
        )
        make_pipeline(connection, spec, model)


def make_spec(
    name: str,
    *,
    source_table: str | None,
    target_table: str | None,
    db_schema: str,
    target_column: list[str] | None,
    chunk_size: int,
    id_field: str,
    text_field: str,
    vector_type: str,
    overlap_tokens: int,
    max_attempts: int,
) -> PipelineSpec:
    """Return what the options ask for; raises UsageError when they do not fit together."""
    from pgqueue_embed.pipelines import PipelineSpec
    from pgqueue_embed.settings import Table, TargetColumns, parse_table

    if source_table is None:
        raise UsageError("name the table with the text: --source-table schema.table")
    source = parse_table(source_table, db_schema)
    target = Table(schema=source.schema, name=f"{source.name}_vectors")
    return PipelineSpec(
        name=name,
        source=source,
        target=parse_table(target_table, db_schema) if target_table else target,
        id_field=id_field,
        text_field=text_field,
        columns=TargetColumns().renamed(_column_names(target_column or [])),
        vector_type=vector_type,
        chunk_tokens=chunk_size,
        overlap_tokens=overlap_tokens,
        max_attempts=max_attempts,
    )


def _column_names(pairs: list[str]) -> dict[str, str]:
    names = {}
    for pair in pairs:
        meaning, equals, name = pair.partition("=")
        if not equals:
            raise UsageError(f"--target-column {pair}: write MEANING=NAME, e.g. embedding=vector")
        names[meaning] = name
    return names


def make_pipeline(connection: Connection, spec: PipelineSpec, model: str) -> Pipeline:
    """Make the pipeline, say so, and warn when its model cannot read the text."""
    from pgqueue_embed.create import create as make

    created = make(connection, spec, model)
    pipeline = created.pipeline
    typer.echo(
        f"made pipeline {pipeline.name}: {pipeline.source}.{pipeline.text_field} →"
        f" {pipeline.target} ({pipeline.vector_type}({pipeline.dimensions}), {pipeline.model},"
        f" {pipeline.chunk_tokens} tokens a chunk, {pipeline.overlap_tokens} overlap)"
    )
    if created.warning:
        typer.secho(f"warning: {created.warning}", fg="yellow", err=True)
    return pipeline


Limit = Annotated[
    int | None, typer.Option("--limit", help="Queue at most so many records.", show_default=False)
]
Where = Annotated[
    str | None,
    typer.Option("--where", help="Only records matching this SQL condition.", show_default=False),
]
Everything = Annotated[
    bool, typer.Option("--all", help="Queue records that are embedded already, too.")
]


def enqueue(
    conninfo: str,
    name: options.PipelineName,
    limit: Limit = None,
    where: Where = None,
    everything: Everything = False,
) -> None:
    """Queue the records that are not embedded yet, or whose text has changed.

    Interrupted, it goes on where it stopped; run twice, it queues nothing twice.

    Example: pgembed enqueue reports --where "event_type = 'D'" --limit 10000
    """
    from pgqueue_embed.connect import connect
    from pgqueue_embed.enqueue import Selection
    from pgqueue_embed.migrate import check_schema
    from pgqueue_embed.pipelines import load_pipeline

    with connect(conninfo) as connection:
        check_schema(connection)
        pipeline = load_pipeline(connection, name)
        queue_records(
            connection, pipeline, Selection(where=where, limit=limit, everything=everything)
        )


def queue_records(connection: Connection, pipeline: Pipeline, selection: Selection) -> int:
    """Enqueue with a progress bar and say how many records were queued."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from pgqueue_embed.enqueue import enqueue as scan
    from pgqueue_embed.enqueue import estimated_records
    from pgqueue_embed.terminal import console

    columns = (TextColumn("scanning"), BarColumn(), MofNCompleteColumn(), TextColumn("records"))
    with Progress(*columns, console=console(), transient=True) as bar:
        task = bar.add_task("scan", total=estimated_records(connection, pipeline))
        queued = scan(
            connection, pipeline, selection, on_slice=lambda each: bar.advance(task, each.scanned)
        )
    records = "record" if queued == 1 else "records"
    typer.echo(f"queued {queued:,} {records} of {pipeline.source}")
    return queued


def pause(conninfo: str, name: options.PipelineName) -> None:
    """Stop workers from claiming work of a pipeline; what they hold is finished.

    Example: pgembed pause reports
    """
    from pgqueue_embed.connect import connect
    from pgqueue_embed.pipelines import load_pipeline, pause_pipeline

    with connect(conninfo) as connection:
        pause_pipeline(connection, load_pipeline(connection, name), "paused by a person")
    typer.echo(f"paused {name}; go on with: pgembed resume {name}")


def resume(conninfo: str, name: options.PipelineName) -> None:
    """Let workers claim work of a paused pipeline again.

    Example: pgembed resume reports
    """
    from pgqueue_embed.connect import connect
    from pgqueue_embed.pipelines import load_pipeline, resume_pipeline

    with connect(conninfo) as connection:
        resume_pipeline(connection, load_pipeline(connection, name))
    typer.echo(f"resumed {name}")


def drop(
    conninfo: str,
    name: options.PipelineName,
    delete_vectors: Annotated[
        bool, typer.Option("--delete-vectors", help="Drop the target table too.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a pipeline with its queue and ledger; its vectors stay unless told otherwise.

    Example: pgembed drop reports --delete-vectors
    """
    from pgqueue_embed.connect import connect
    from pgqueue_embed.pipelines import drop_pipeline, load_pipeline

    with connect(conninfo) as connection:
        pipeline = load_pipeline(connection, name)
        vectors = "deleted" if delete_vectors else "kept"
        if not yes:
            typer.confirm(
                f"Remove pipeline {name}? The vectors in {pipeline.target} are {vectors}.",
                abort=True,
            )
        drop_pipeline(connection, pipeline, delete_vectors=delete_vectors)
    typer.echo(f"removed pipeline {name}; the vectors in {pipeline.target} were {vectors}")
