"""The commands for records that were given up on: failures, retry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgqueue_embed.cli.display import (
    console,
    count,
    one_line,
    plain_table,
    print_json,
    say,
)
from pgqueue_embed.cli.options import connected
from pgqueue_embed.cli.pipeline_options import PipelineName
from pgqueue_embed.untrusted.shell import command

if TYPE_CHECKING:
    from rich.table import Table


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(failures))
    app.command()(connected(retry))


def failures(
    conninfo: str,
    name: PipelineName,
    limit: Annotated[int, typer.Option("--limit", help="Show at most so many.")] = 20,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON: the columns of pgembed.dead_letters."),
    ] = False,
) -> None:
    """List the dead letters, records that were given up on, the newest first.

    The same as SELECT * FROM pgembed.dead_letters.

    Example: pgembed failures reports --limit 100
    """
    from pgqueue_embed.db.migrate import check_schema
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.pipeline.catalog import load_pipeline
    from pgqueue_embed.queue.dead_letters import count_failures, read_failures

    with connect(conninfo) as connection:
        check_schema(connection)
        pipeline = load_pipeline(connection, name)
        rows = read_failures(connection, pipeline, limit=limit)
        total = count_failures(connection, pipeline)
    if as_json:
        print_json(rows)
    elif not rows:
        say(f"{name} has no dead letters")
    else:
        _show(name, rows, total)


def _show(name: str, rows: list[dict[str, Any]], total: int) -> None:
    out = console()
    out.print(_table(rows))
    out.print()
    shown = f"the newest {len(rows):,} of " if len(rows) < total else ""
    out.print(
        f"{shown}{count(total, 'dead letter')}; put back into the queue: {command('retry', name)}",
        soft_wrap=True,
    )


def _table(rows: list[dict[str, Any]]) -> Table:
    table = plain_table(["Key", "Given up on", "Attempts", "Error"])
    for row in rows:
        table.add_row(
            one_line(row["key"]),
            f"{row['dead_at'].astimezone():%Y-%m-%d %H:%M}",
            str(row["attempts"]),
            one_line(row["last_error"]),
        )
    return table


def retry(
    conninfo: str,
    name: PipelineName,
    key: Annotated[
        list[str] | None,
        typer.Option(
            "--key",
            help="Only this record; may be given many times. Defaults to every dead letter.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Put dead letters back into the queue, with all their attempts ahead of them.

    Example: pgembed retry reports --key 4711 --key 4712
    """
    from pgqueue_embed.db.migrate import check_schema
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.pipeline.catalog import load_pipeline
    from pgqueue_embed.queue import dead_letters

    with connect(conninfo) as connection:
        check_schema(connection)
        pipeline = load_pipeline(connection, name)
        retried = dead_letters.retry(connection, pipeline, key or ())
    if not retried:
        say(f"{name} has no dead letters")
        return
    say(f"put {count(retried, 'dead letter')} of {name} back into the queue")
    if pipeline.state == "paused":
        say(f"{name} is paused; go on: {command('resume', name)}")
