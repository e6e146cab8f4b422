"""Commands that embed: work and run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from pgqueue_embed.cli import pipeline_options as options
from pgqueue_embed.cli.options import connected, log_settings
from pgqueue_embed.cli.setup import (
    Everything,
    Limit,
    Where,
    make_pipeline,
    make_spec,
    queue_records,
)
from pgqueue_embed.endings import DRAINED
from pgqueue_embed.settings import DEFAULT_MODEL, Pipeline, WorkerSettings

if TYPE_CHECKING:
    from pgqueue_embed.connect import Connection

WORKER = "Worker"

Concurrency = Annotated[
    int,
    typer.Option(
        "--concurrency",
        "-c",
        help="Claims in work at once; one computes while others read, chunk and write.",
        rich_help_panel=WORKER,
    ),
]
Device = Annotated[
    str,
    typer.Option("--device", help="auto, mps, cuda or cpu.", rich_help_panel=WORKER),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        help="auto (the fastest that agrees with fp32), fp32, fp16 or bf16.",
        rich_help_panel=WORKER,
    ),
]
ModelPath = Annotated[
    str | None,
    typer.Option(
        "--model-path",
        help="The pipeline's model on this machine, if it lies elsewhere than its name says.",
        rich_help_panel=WORKER,
        show_default=False,
    ),
]
Lease = Annotated[
    float,
    typer.Option(
        "--lease",
        help="Seconds without progress after which the server takes a claim back.",
        rich_help_panel=WORKER,
    ),
]
RetryDelay = Annotated[
    float,
    typer.Option(
        "--retry-delay",
        help="Seconds before a failed record's second attempt; doubles with each.",
        rich_help_panel=WORKER,
    ),
]
MemoryLimit = Annotated[
    int | None,
    typer.Option(
        "--memory-limit",
        help="Megabytes of process and device memory after which the worker process is replaced.",
        rich_help_panel=WORKER,
        show_default=False,
    ),
]
CacheSize = Annotated[
    int,
    typer.Option(
        "--cache-size",
        help="Megabytes of vectors kept for chunks that occur again; 0 for none.",
        rich_help_panel=WORKER,
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(work))
    app.command()(connected(run))


def work(
    conninfo: str,
    concurrency: Concurrency = 2,
    drain: Annotated[
        bool,
        typer.Option("--drain", help="Leave when nothing is pending.", rich_help_panel=WORKER),
    ] = False,
    pipeline: Annotated[
        list[str] | None,
        typer.Option(
            "--pipeline",
            help="Work on this pipeline only; repeatable. \\[default: all]",
            rich_help_panel=WORKER,
            show_default=False,
        ),
    ] = None,
    max_records: Annotated[
        int | None,
        typer.Option(
            "--max-records",
            help="Leave after the claim that reaches so many records.",
            rich_help_panel=WORKER,
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    model_path: ModelPath = None,
    lease: Lease = 60.0,
    retry_delay: RetryDelay = 5.0,
    memory_limit: MemoryLimit = None,
    cache_size: CacheSize = 256,
) -> None:
    """Claim, embed and commit until stopped; start it on as many machines as you have.

    Ctrl-C or SIGTERM finishes the claim in hand and leaves; a second one gives it back and leaves
    at once.

    Example: pgembed work --concurrency 4
    """
    settings = WorkerSettings(
        concurrency=concurrency,
        drain=drain,
        pipelines=tuple(pipeline or ()),
        device=device,
        precision=precision,
        max_records=max_records,
        model_path=model_path,
        lease_seconds=lease,
        retry_delay_seconds=retry_delay,
        cache_megabytes=cache_size,
        memory_limit_megabytes=memory_limit,
    )
    ending = _supervise(conninfo, settings)
    if ending == DRAINED:
        suggest_index(conninfo, settings.pipelines)


def _supervise(
    conninfo: str,
    settings: WorkerSettings,
    *,
    quiet: bool = False,
    on_tick: Callable[[], None] = lambda: None,
) -> str:
    from pgqueue_embed import log
    from pgqueue_embed.supervisor import Supervisor

    how = log_settings(quiet=quiet)
    how.apply()
    log.get_logger().debug("supervisor started")
    return Supervisor(conninfo, settings, how, on_tick=on_tick).run()


def run(
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
    limit: Limit = None,
    where: Where = None,
    everything: Everything = False,
    concurrency: Concurrency = 2,
    device: Device = "auto",
    precision: Precision = "auto",
    model_path: ModelPath = None,
    cache_size: CacheSize = 256,
) -> None:
    """Make the pipeline if it is missing, queue its records, embed them all, and leave.

    Start pgembed work on other machines meanwhile, and they share the records.

    Example: pgembed run reports --source-table event_text --text-field foi_text
    """
    from pgqueue_embed.claims import is_drained
    from pgqueue_embed.connect import connect
    from pgqueue_embed.enqueue import Selection
    from pgqueue_embed.migrate import migrate
    from pgqueue_embed.pipelines import load_pipeline, pipeline_names

    selection = Selection(where=where, limit=limit, everything=everything)
    settings = WorkerSettings(
        concurrency=concurrency,
        drain=True,
        pipelines=(name,),
        device=device,
        precision=precision,
        model_path=model_path,
        cache_megabytes=cache_size,
    )
    migrate(conninfo)
    with connect(conninfo) as connection:
        if name not in pipeline_names(connection):
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
        pipeline = load_pipeline(connection, name)
        queue_records(connection, pipeline, selection)
        drained = is_drained(connection, [pipeline.id])
    if drained:
        suggest_index(conninfo, (name,))
    else:
        embed_all(conninfo, name, settings)


def embed_all(conninfo: str, name: str, settings: WorkerSettings) -> None:
    """Drain one pipeline with a live progress bar, and say what to do next."""
    from pgqueue_embed.progress_bar import progress_bar

    with progress_bar(conninfo, name) as bar:
        ending = _supervise(conninfo, settings, quiet=True, on_tick=bar.update)
    if ending == DRAINED:
        suggest_index(conninfo, (name,))
    else:
        typer.echo(f"{ending}; go on with: pgembed work --drain --pipeline {name}", err=True)


def suggest_index(conninfo: str, names: tuple[str, ...]) -> None:
    """Name the next step for each pipeline: its failures, its vector index, or a search."""
    from pgqueue_embed.connect import connect
    from pgqueue_embed.pipelines import load_pipelines

    with connect(conninfo) as connection:
        for pipeline in load_pipelines(connection, names):
            _suggest(connection, pipeline)


def _suggest(connection: Connection, pipeline: Pipeline) -> None:
    from pgqueue_embed.vector_index import has_vector_index

    row = connection.execute(
        "select pending, dead, state_reason from pgembed.progress where pipeline = %s",
        (pipeline.name,),
    ).fetchone()
    pending, dead, reason = row or (0, 0, None)
    if reason:
        typer.secho(f"{pipeline.name} is paused: {reason}", fg="yellow", err=True)
    if dead:
        typer.secho(
            f"{dead:,} records were given up on; see why: pgembed failures {pipeline.name}",
            fg="yellow",
            err=True,
        )
    if pending:
        return
    if has_vector_index(connection, pipeline):
        typer.echo(f'search it: pgembed search {pipeline.name} "…"')
    else:
        typer.echo(
            f"{pipeline.name} is complete; build its vector index: pgembed index {pipeline.name}"
        )
