"""Commands that prepare the database: migrate, create, enqueue, pause, resume, drop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from pgqueue_embed.cli import pipeline_options as options
from pgqueue_embed.cli.display import confirm, one_line, say
from pgqueue_embed.cli.options import connected

if TYPE_CHECKING:
    from pgqueue_embed.connect import Connection
    from pgqueue_embed.create import Created
    from pgqueue_embed.enqueue import Selection, Slice
    from pgqueue_embed.settings import Pipeline
    from pgqueue_embed.spec import PipelineSpec


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(migrate, may_make_server=True))
    app.command()(connected(create, may_make_server=True))
    for command in (enqueue, pause, resume, drop):
        app.command()(connected(command))


def migrate(conninfo: str) -> None:
    """Create or upgrade schema pgembed in the database; safe from many machines at once.

    Example: pgembed migrate --dsn postgresql://app@db.lan/reports
    """
    from pgqueue_embed.migrate import migrate as apply

    applied = apply(conninfo)
    for name in applied:
        say(f"applied {name}")
    if not applied:
        say("schema pgembed is up to date")


def create(
    conninfo: str,
    name: options.PipelineName,
    wanted: options.WantedPipeline,
    if_not_exists: Annotated[
        bool, typer.Option("--if-not-exists", help="Keep a pipeline that is there already.")
    ] = False,
) -> None:
    """Make a pipeline: its settings, and its target table or a column of the source.

    Example: pgembed create reports --source-table event_text --text-field foi_text
    """
    from pgqueue_embed.connect import connect
    from pgqueue_embed.migrate import check_schema
    from pgqueue_embed.pipelines import pipeline_names

    with connect(conninfo) as connection:
        check_schema(connection)
        if if_not_exists and name in pipeline_names(connection):
            say(f"pipeline {name} exists already and was left as it is")
            return
        make_pipeline(connection, wanted.spec(name), wanted.model, sync=wanted.sync)


def make_pipeline(
    connection: Connection, spec: PipelineSpec, model: str, *, sync: bool = False
) -> Pipeline:
    """Make the pipeline, say so, and warn when its model cannot read the text."""
    from pgqueue_embed.create import create as make

    created = make(connection, spec, model, sync=sync)
    say_created(created)
    return created.pipeline


def say_created(created: Created) -> None:
    """Say what was made, and what to know about its model."""
    from pgqueue_embed.target import target_of

    pipeline = created.pipeline
    say(
        f"made pipeline {pipeline.name}: {one_line(str(pipeline.document))} of {pipeline.source} →"
        f" {target_of(pipeline)} ({pipeline.vector_type}({pipeline.dimensions}), {pipeline.model},"
        f" {pipeline.chunk_tokens} tokens a chunk, {pipeline.overlap_tokens} overlap)"
    )
    for warning in created.warnings:
        say(f"warning: {warning}", fg="yellow", err=True)


def enqueue(
    conninfo: str,
    name: options.PipelineName,
    records: options.WantedRecords,
    allow_deletes: options.AllowDeletes = False,
) -> None:
    """Queue the records that are not embedded yet, have changed, or are gone from the source.

    Interrupted, it goes on where it stopped; run twice, it queues nothing twice that waits. If more
    than a tenth of the records is gone, and more than 1,000, though no TRUNCATE and no trigger has
    told, it pauses the pipeline and asks.

    Example: pgembed enqueue reports --where "event_type = 'D'" --limit 10000

    Example, after more than a tenth was deleted: pgembed enqueue reports --allow-deletes
    """
    from pgqueue_embed.connect import connect
    from pgqueue_embed.migrate import check_schema
    from pgqueue_embed.pipelines import load_pipeline

    with connect(conninfo) as connection:
        check_schema(connection)
        pipeline = load_pipeline(connection, name)
        queue_records(connection, pipeline, records.selection(), allow_deletes=allow_deletes)


def queue_records(
    connection: Connection,
    pipeline: Pipeline,
    selection: Selection,
    *,
    allow_deletes: bool = False,
) -> int:
    """Enqueue with a progress bar and say how many records were queued."""
    from pgqueue_embed.enqueue import enqueue as scan

    with scanning(connection, pipeline) as advance:
        queued = scan(
            connection, pipeline, selection, on_slice=advance, allow_deletes=allow_deletes
        )
    records = "record" if queued == 1 else "records"
    say(f"queued {queued:,} {records} of {pipeline.source}")
    return queued


@contextmanager
def scanning(connection: Connection, pipeline: Pipeline) -> Iterator[Callable[[Slice], None]]:
    """Draw a progress bar of a scan of the source, fed by what is yielded."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from pgqueue_embed.enqueue import estimated_records
    from pgqueue_embed.terminal import progress_console

    columns = (TextColumn("scanning"), BarColumn(), MofNCompleteColumn(), TextColumn("records"))
    with Progress(*columns, console=progress_console(), transient=True) as bar:
        task = bar.add_task("scan", total=estimated_records(connection, pipeline))
        yield lambda done: bar.advance(task, done.scanned)


def pause(conninfo: str, name: options.PipelineName) -> None:
    """Stop workers from claiming work of a pipeline; what they hold is finished.

    Example: pgembed pause reports
    """
    from pgqueue_embed.connect import connect
    from pgqueue_embed.pipelines import load_pipeline, pause_pipeline

    with connect(conninfo) as connection:
        pause_pipeline(connection, load_pipeline(connection, name), "paused by a person")
    say(f"paused {name}; go on with: pgembed resume {name}")


def resume(conninfo: str, name: options.PipelineName) -> None:
    """Let workers claim work of a paused pipeline again.

    Example: pgembed resume reports
    """
    from pgqueue_embed.connect import connect
    from pgqueue_embed.pipelines import load_pipeline, resume_pipeline

    with connect(conninfo) as connection:
        resume_pipeline(connection, load_pipeline(connection, name))
    say(f"resumed {name}")


def drop(
    conninfo: str,
    name: options.PipelineName,
    delete_vectors: Annotated[
        bool, typer.Option("--delete-vectors", help="Drop the target table, or the column, too.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a pipeline with its queue and ledger; its vectors stay unless told otherwise.

    Example: pgembed drop reports --delete-vectors
    """
    from pgqueue_embed.connect import connect
    from pgqueue_embed.pipelines import drop_pipeline, load_pipeline
    from pgqueue_embed.target import target_of

    with connect(conninfo) as connection:
        pipeline = load_pipeline(connection, name)
        target = target_of(pipeline)
        vectors = "deleted" if delete_vectors else "kept"
        if not yes:
            confirm(f"Remove pipeline {name}? The vectors in {target} are {vectors}.")
        drop_pipeline(connection, pipeline, delete_vectors=delete_vectors)
    say(f"removed pipeline {name}; the vectors in {target} were {vectors}")
