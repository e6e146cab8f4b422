"""The command create."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pgqueue_embed.cli import pipeline_options as options
from pgqueue_embed.cli.display import one_line, say
from pgqueue_embed.untrusted.shell import command

if TYPE_CHECKING:
    from pgqueue_embed.db.session import Connection
    from pgqueue_embed.lifecycle.create import Created
    from pgqueue_embed.pipeline.pipeline import Pipeline
    from pgqueue_embed.pipeline.spec import PipelineSpec


def create(
    conninfo: str,
    name: options.PipelineName,
    wanted: options.WantedPipeline,
    if_not_exists: Annotated[
        bool,
        typer.Option(
            "--if-not-exists", help="Keep a pipeline of this name that has the options given."
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Make nothing; say what it would take, as pgembed estimate does.",
        ),
    ] = False,
) -> None:
    """Make a pipeline: its settings, and its target table or a column of the source.

    Example: pgembed create reports --source-table event_text --text-field foi_text
    """
    from pgqueue_embed.db.migrate import check_schema
    from pgqueue_embed.db.session import connect

    with connect(conninfo) as connection:
        check_schema(connection)
        if dry_run:
            _dry_run(connection, wanted.spec(name), wanted.model)
            return
        if not if_not_exists:
            make_pipeline(connection, wanted.spec(name), wanted.model, sync=wanted.sync)
        elif make_or_keep(connection, name, wanted) is None:
            say(f"pipeline {name} exists already and was left as it is")
    say(f"next: {command('enqueue', name)}, then on each machine: pgembed work")


def _dry_run(connection: Connection, spec: PipelineSpec, model: str) -> None:
    """Refuse what could not be made, and say what the pipeline would take."""
    from pgqueue_embed.cli.estimate import estimated, show_estimate
    from pgqueue_embed.estimation.subject import of_spec
    from pgqueue_embed.lifecycle.create import check_tables

    check_tables(connection, spec)
    show_estimate(estimated(connection, of_spec(connection, spec, model), None))
    say("nothing was made")


def make_or_keep(
    connection: Connection, name: str, wanted: options.WantedPipeline
) -> Pipeline | None:
    """Make the pipeline, or return None if one of this name is there and is as it is wanted."""
    from pgqueue_embed.configuration.existing import make_or_keep as make_or

    return make_or(
        connection,
        name,
        wanted.asked,
        lambda: make_pipeline(connection, wanted.spec(name), wanted.model, sync=wanted.sync),
    )


def make_pipeline(
    connection: Connection, spec: PipelineSpec, model: str, *, sync: bool = False
) -> Pipeline:
    """Make the pipeline, say so, and warn when its model cannot read the text."""
    from pgqueue_embed.lifecycle.create import create as make

    created = make(connection, spec, model, sync=sync)
    say_created(created)
    return created.pipeline


def say_created(created: Created) -> None:
    """Say what was made, and what to know about its model."""
    from pgqueue_embed.target import target_of

    pipeline = created.pipeline
    say(
        f"made pipeline {pipeline.name}: {one_line(str(pipeline.document))} of {pipeline.source} →"
        f" {target_of(pipeline)} ({pipeline.spec.vector_type}({pipeline.dimensions}),"
        f" {pipeline.model},"
        f" {pipeline.spec.chunk_tokens} tokens a chunk, {pipeline.spec.overlap_tokens} overlap)"
    )
    for warning in created.warnings:
        say(f"warning: {warning}", fg="yellow", err=True)
