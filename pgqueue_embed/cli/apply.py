"""The command that brings the database to a configuration file: apply."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgqueue_embed.cli.display import confirm, say
from pgqueue_embed.cli.options import connected
from pgqueue_embed.cli.plan_table import show_plan
from pgqueue_embed.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgqueue_embed.configuration.apply import Applied
    from pgqueue_embed.configuration.declared import Declared
    from pgqueue_embed.configuration.plan import Plan
    from pgqueue_embed.db.session import Connection

# What --dry-run exits with when there is something to do; 1 and 2 are errors.
DIFFERENT = 3

File = Annotated[Path, typer.Argument(help="The configuration file.", metavar="FILE")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Only check and show. Exits with 0 if nothing is to be done, with 3 if something is.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(apply))


def apply(
    conninfo: str, file: File = Path("pgembed.toml"), dry_run: DryRun = False, yes: Yes = False
) -> None:
    """Make and alter pipelines as a configuration file declares them; shows how, and asks.

    Everything is checked before anything is done, and done as a whole or not at all. What is
    in the database alone is left alone. Run again, it finds nothing to do.

    Example: pgembed apply --dry-run
    """
    from pgqueue_embed.cli.declared_pipelines import read_pipelines
    from pgqueue_embed.db.migrate import check_schema
    from pgqueue_embed.db.session import connect

    declared = read_pipelines(file)
    with connect(conninfo) as connection:
        check_schema(connection)
        if dry_run:
            _dry_run(connection, declared)
        elif yes:
            _apply(conninfo, connection, declared, None)
        else:
            _ask(conninfo, connection, declared)


def _dry_run(connection: Connection, declared: Sequence[Declared]) -> None:
    from pgqueue_embed.configuration.apply import check
    from pgqueue_embed.configuration.plan import make_plan

    plan = make_plan(connection, declared)
    check(connection, plan)
    show_plan(plan)
    if not plan.is_settled:
        raise typer.Exit(DIFFERENT)


def _ask(conninfo: str, connection: Connection, declared: Sequence[Declared]) -> None:
    """Show what is to be done, and do it once a person says so, holding no lock meanwhile."""
    from pgqueue_embed.configuration.plan import make_plan

    plan = make_plan(connection, declared)
    show_plan(plan)
    if not plan.is_settled:
        confirm("Do it?")
        _apply(conninfo, connection, declared, plan)


def _apply(
    conninfo: str, connection: Connection, declared: Sequence[Declared], agreed: Plan | None
) -> None:
    """Do what is to be done, which must be what was `agreed`, if anything was."""
    from pgqueue_embed.configuration.apply import apply as carry_out
    from pgqueue_embed.configuration.apply import taking_turns
    from pgqueue_embed.configuration.plan import make_plan

    with taking_turns(conninfo, on_wait=_say_waiting):
        plan = make_plan(connection, declared)
        if agreed is None:
            show_plan(plan)
        elif plan != agreed:
            raise UsageError("pipelines were altered meanwhile; nothing was done, look again")
        applied = carry_out(connection, plan)
    for each in applied:
        _finish(connection, each)


def _finish(connection: Connection, applied: Applied) -> None:
    """Say what was done, and queue what it leaves to be queued; others may apply meanwhile."""
    from pgqueue_embed.cli.alter import begin_generation
    from pgqueue_embed.cli.create import say_created
    from pgqueue_embed.cli.sync import queue_what_was_missed

    comparison = applied.comparison
    if applied.created:
        say_created(applied.created)
        return
    say(f"altered {comparison.declared.spec.name}")
    if comparison.pipeline and comparison.must_turn_sync and comparison.declared.sync:
        queue_what_was_missed(connection, comparison.pipeline)
    if comparison.pipeline and applied.successor:
        begin_generation(connection, comparison.pipeline, applied.successor)


def _say_waiting() -> None:
    say("another pgembed apply is at work on this database; waiting for it", err=True)
