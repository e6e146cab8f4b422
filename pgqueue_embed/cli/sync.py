"""The command that has changes of the source captured: sync."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pgqueue_embed.cli import pipeline_options as options
from pgqueue_embed.cli.display import say
from pgqueue_embed.cli.options import connected
from pgqueue_embed.quantities import count
from pgqueue_embed.untrusted.shell import command

if TYPE_CHECKING:
    from pgqueue_embed.db.session import Connection
    from pgqueue_embed.pipeline.pipeline import Pipeline

Wanted = Annotated[
    bool | None,
    typer.Option(
        "--on/--off",
        help="Make the triggers and queue what they have missed, or remove them. Defaults to"
        " saying whether they are there.",
        show_default=False,
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(sync))


def sync(conninfo: str, name: options.PipelineName, wanted: Wanted = None) -> None:
    """Keep the vectors true to the source: triggers queue whatever is written to it.

    Statements fire one trigger each, in sessions of origin; logical replication and others with
    session_replication_role = replica fire one for each row. It takes the owner of the source;
    without triggers, pgembed enqueue finds what has changed.

    Example: pgembed sync reports --on
    """
    from pgqueue_embed.db.migrate import check_schema
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.pipeline.catalog import load_pipeline

    with connect(conninfo) as connection:
        check_schema(connection)
        pipeline = load_pipeline(connection, name)
        if wanted is None:
            say(_state(connection, pipeline))
        elif wanted:
            _start(connection, pipeline)
        else:
            _stop(connection, pipeline)


def _state(connection: Connection, pipeline: Pipeline) -> str:
    from pgqueue_embed.queue.capture import is_on, lacking, misfiring

    name = pipeline.name
    if not is_on(connection, pipeline):
        return (
            f"changes of {pipeline.source} are not captured; {command('enqueue', name)} finds them,"
            f" and {command('sync', name, '--on')} captures them"
        )
    without = ", ".join(map(str, lacking(connection, pipeline)))
    if without:
        return (
            f"changes of {pipeline.source} are captured, but not what is written straight to"
            f" {without}: {command('sync', name, '--on')}"
        )
    wrong = "; ".join(misfiring(connection, pipeline))
    if wrong:
        return (
            f"changes of {pipeline.source} are captured, but not all as they are meant to be:"
            f" {wrong}: {command('sync', name, '--on')}"
        )
    return f"changes of {pipeline.source} are captured"


def _start(connection: Connection, pipeline: Pipeline) -> None:
    from pgqueue_embed.lifecycle.sync import start_capture

    tables = start_capture(connection, pipeline)
    if not tables:
        say(f"changes of {pipeline.source} are captured already")
        return
    say(f"changes are captured from now on: triggers on {', '.join(map(str, tables))}")
    queue_what_was_missed(connection, pipeline)


def queue_what_was_missed(connection: Connection, pipeline: Pipeline) -> None:
    """Queue what changed before capture was on, with a progress bar, and say how much it was."""
    from pgqueue_embed.cli.enqueue import scanning
    from pgqueue_embed.lifecycle.sync import queue_missed

    with scanning(connection, pipeline) as advance:
        queued = queue_missed(connection, pipeline, on_slice=advance)
    say(f"queued {count(queued, 'record')} that were new, had changed or were gone")


def _stop(connection: Connection, pipeline: Pipeline) -> None:
    from pgqueue_embed.lifecycle.sync import stop_capture

    if stop_capture(connection, pipeline):
        say(
            f"changes of {pipeline.source} are no longer captured;"
            f" {command('enqueue', pipeline.name)} finds them"
        )
    else:
        say(f"changes of {pipeline.source} were not captured")
