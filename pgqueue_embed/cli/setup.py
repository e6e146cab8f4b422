"""Commands that prepare the database: migrate, create, enqueue, pause, resume, drop."""

from __future__ import annotations


import typer

from pgqueue_embed.cli.options import connected


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(migrate))


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
