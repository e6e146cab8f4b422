"""Commands that prepare the database and keep its pipelines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pgqueue_embed.cli import pipeline_options as options
from pgqueue_embed.cli.create import create
from pgqueue_embed.cli.display import confirm, say
from pgqueue_embed.cli.enqueue import enqueue
from pgqueue_embed.cli.options import connected
from pgqueue_embed.untrusted.shell import command

if TYPE_CHECKING:
    pass


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(migrate, may_make_server=True))
    app.command()(connected(create, may_make_server=True))
    for each in (enqueue, pause, resume, drop):
        app.command()(connected(each))


def migrate(conninfo: str) -> None:
    """Create or upgrade schema pgembed in the database; safe from many machines at once.

    Example: pgembed migrate --dsn postgresql://app@db.lan/reports
    """
    from pgqueue_embed.db.migrate import migrate as apply

    applied = apply(conninfo)
    for name in applied:
        say(f"applied {name}")
    if not applied:
        say("schema pgembed is up to date")
    elif applied[0].startswith("0001"):
        say("next: pgembed create NAME --source-table TABLE, or all in one: pgembed run")


def pause(conninfo: str, name: options.PipelineName) -> None:
    """Stop workers from claiming work of a pipeline; what they hold is finished.

    Example: pgembed pause reports
    """
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.pipeline.catalog import BY_A_PERSON, load_pipeline, pause_pipeline

    with connect(conninfo) as connection:
        pause_pipeline(connection, load_pipeline(connection, name), BY_A_PERSON)
    say(f"paused {name}; go on with: {command('resume', name)}")


def resume(conninfo: str, name: options.PipelineName) -> None:
    """Let workers claim work of a paused pipeline again.

    Example: pgembed resume reports
    """
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.pipeline.catalog import load_pipeline, resume_pipeline

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
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.lifecycle.drop import drop_pipeline
    from pgqueue_embed.pipeline.catalog import load_pipeline
    from pgqueue_embed.target import target_of

    with connect(conninfo) as connection:
        pipeline = load_pipeline(connection, name)
        target = target_of(pipeline)
        vectors = "deleted" if delete_vectors else "kept"
        if not yes:
            confirm(f"Remove pipeline {name}? The vectors in {target} are {vectors}.")
        drop_pipeline(connection, pipeline, delete_vectors=delete_vectors)
    say(f"removed pipeline {name}; the vectors in {target} were {vectors}")
