"""The command for cron and load balancers: health."""

from __future__ import annotations

from typing import Annotated

import typer

from pgqueue_embed.cli.display import say
from pgqueue_embed.cli.options import connected
from pgqueue_embed.errors import UsageError
from pgqueue_embed.untrusted.foreign_text import printable

MOST_CHARACTERS = 1_000


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(health))


def health(
    conninfo: str,
    name: Annotated[
        str | None, typer.Argument(help="A pipeline.", show_default="every pipeline")
    ] = None,
    minutes: Annotated[
        int,
        typer.Option("--minutes", help="For so long work may wait without a commit of any of it."),
    ] = 15,
    new_dead_letters: Annotated[
        int,
        typer.Option(
            "--new-dead-letters", help="So many dead letters may come up in these minutes."
        ),
    ] = 0,
    allow_silent: Annotated[
        bool,
        typer.Option("--allow-silent", help="Machines may fall silent: lids are closed here."),
    ] = False,
) -> None:
    """Say in one line whether all is well, and exit with 1 if it is not.

    It is not where records wait and none is committed, a fault has paused a pipeline, dead letters
    come up, a machine has fallen silent with none in its place, a vector index is invalid, or the
    database does not answer.

    Example, in a crontab: */5 * * * * pgembed health --minutes 30 || mail -s embedding me@lan
    """
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.monitoring.health import Limits, read_troubles

    if not 1 <= minutes <= 1440:
        raise UsageError(f"--minutes {minutes}: give 1 to 1440, a day")
    if new_dead_letters < 0:
        raise UsageError(f"--new-dead-letters {new_dead_letters}: give at least 0")
    limits = Limits(minutes=minutes, new_dead_letters=new_dead_letters, allow_silent=allow_silent)
    with connect(conninfo) as connection:
        found = read_troubles(connection, name, limits)
    say(printable("; ".join(found) or "ok", MOST_CHARACTERS))
    if found:
        raise typer.Exit(1)
