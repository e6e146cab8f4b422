"""The commands for records that were given up on: failures, retry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgqueue_embed.cli.display import console, one_line, plain_table, print_json, say
from pgqueue_embed.cli.options import connected
from pgqueue_embed.cli.pipeline_options import PipelineName
from pgqueue_embed.errors import UsageError
from pgqueue_embed.quantities import count
from pgqueue_embed.untrusted.shell import command

if TYPE_CHECKING:
    from rich.table import Table

    from pgqueue_embed.db.session import Connection

Rows = list[dict[str, Any]]

SameErrorAs = Annotated[
    str | None,
    typer.Option(
        "--same-error-as",
        metavar="KEY",
        help="Only those that failed as this record did; errors are taken for the same whatever"
        " numbers and quoted values are in them.",
        show_default=False,
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(failures))
    app.command()(connected(retry))


def failures(
    conninfo: str,
    name: PipelineName,
    each: Annotated[
        bool, typer.Option("--all", help="List each record, the newest first, not by error.")
    ] = False,
    same_error_as: SameErrorAs = None,
    limit: Annotated[int, typer.Option("--limit", help="Show at most so many.")] = 20,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print JSON: the columns of pgembed.failure_groups, or of pgembed.dead_letters"
            " with --all and --same-error-as.",
        ),
    ] = False,
) -> None:
    """Show the dead letters, records that were given up on, by their errors.

    With --all or --same-error-as, each record is listed with its error, as in
    SELECT * FROM pgembed.dead_letters.

    Example: pgembed failures reports --same-error-as 4711
    """
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.monitoring.snapshot import read_progress

    by_error = not each and same_error_as is None
    with connect(conninfo) as connection:
        letters = read_progress(connection, name).dead
        rows, total = _read(connection, name, limit, same_error_as, by_error=by_error)
    if as_json:
        print_json(rows)
    elif not rows:
        say(f"{name} has no dead letters")
    elif by_error:
        show_groups(name, rows, letters)
    else:
        _show(name, rows, letters if total is None else total, same_error_as)


def _read(
    connection: Connection,
    name: str,
    limit: int,
    same_error_as: str | None,
    *,
    by_error: bool,
) -> tuple[Rows, int | None]:
    """Return what is to be shown, and how many dead letters it is of: None for all.

    By the public views alone, but for what a key says: that depends on the type of its column.
    """
    from pgqueue_embed.pipeline.catalog import load_pipeline
    from pgqueue_embed.queue import dead_letters

    if by_error:
        return dead_letters.read_groups(connection, name, limit=limit), None
    if same_error_as is None:
        return dead_letters.read_failures(connection, name, limit=limit), None
    pipeline = load_pipeline(connection, name)
    kind = dead_letters.failure_kind(connection, pipeline, same_error_as)
    rows = dead_letters.read_failures(connection, name, limit=limit, kind=kind)
    return rows, dead_letters.count_failures(connection, pipeline, kind)


def show_groups(name: str, rows: Rows, letters: int) -> None:
    """Print `rows` of pgembed.failure_groups, of `letters` dead letters, and how to retry them."""
    from rich.text import Text

    out = console()
    table = plain_table([], ["Records"])
    table.add_column("Error", overflow="fold")
    table.add_column("Such as", overflow="fold")
    for row in rows:
        example = Text(one_line(row["example_key"]), style="dim")
        table.add_row(f"{row['failures']:,}", one_line(row["error"]), example)
    out.print(table)
    out.print()
    example = rows[0]["example_key"]
    shown = sum(row["failures"] for row in rows)
    rest = f", {letters - shown:,} of them with other errors" if shown < letters else ""
    out.print(
        f"{count(letters, 'dead letter')}{rest}; put one kind back into the queue:"
        f" {command('retry', name, '--same-error-as', example or '')}, or all of them:"
        f" {command('retry', name)}; list them: {command('failures', name, '--all')}",
        soft_wrap=True,
    )


def _show(name: str, rows: Rows, total: int, same_error_as: str | None) -> None:
    out = console()
    out.print(_table(rows))
    out.print()
    shown = f"the newest {len(rows):,} of " if len(rows) < total else ""
    which = () if same_error_as is None else ("--same-error-as", same_error_as)
    out.print(
        f"{shown}{count(total, 'dead letter')}; put back into the queue:"
        f" {command('retry', name, *which)}",
        soft_wrap=True,
    )


def _table(rows: Rows) -> Table:
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
    same_error_as: SameErrorAs = None,
) -> None:
    """Put dead letters back into the queue, with all their attempts ahead of them.

    Example: pgembed retry reports --key 4711 --key 4712

    Example, of all that failed like 4711: pgembed retry reports --same-error-as 4711
    """
    from pgqueue_embed.db.migrate import check_schema
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.pipeline.catalog import load_pipeline
    from pgqueue_embed.queue import dead_letters

    if key and same_error_as is not None:
        raise UsageError("give --key or --same-error-as, not both")
    with connect(conninfo) as connection:
        check_schema(connection)
        pipeline = load_pipeline(connection, name)
        kind = None
        if same_error_as is not None:
            kind = dead_letters.failure_kind(connection, pipeline, same_error_as)
        retried = dead_letters.retry(connection, pipeline, key or None, kind=kind)
    if not retried:
        say(f"{name} has no dead letters")
        return
    say(f"put {count(retried, 'dead letter')} of {name} back into the queue")
    if pipeline.state == "paused":
        say(f"{name} is paused; go on: {command('resume', name)}")
