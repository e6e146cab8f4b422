"""The command line: one file per group of commands, joined here."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pgqueue_embed.cli.display import say
from pgqueue_embed.cli.group import OneLineGroup, show_no_type_of_flags
from pgqueue_embed.cli.lazy_commands import LazyCommands
from pgqueue_embed.cli.options import LogFile, LogFormat, LogLevel
from pgqueue_embed.version import VERSION

# The commands of each file, in the order of the help text.
COMMANDS = {
    "pipelines": ("migrate", "create", "enqueue", "pause", "resume", "drop"),
    "estimate": ("estimate",),
    "adopt": ("adopt",),
    "sync": ("sync",),
    "alter": ("alter",),
    "apply": ("apply",),
    "show": ("show",),
    "status": ("status",),
    "health": ("health",),
    "metrics": ("metrics",),
    "web": ("web",),
    "failures": ("failures", "retry"),
    "index": ("index",),
    "evaluate": ("evaluate",),
    "search": ("search",),
    "serve": ("serve", "mcp"),
    "doctor": ("doctor",),
    "verify": ("verify",),
    "work": ("work", "run"),
    "bench": ("bench",),
    "demo": ("demo",),
    "db": ("db",),
    "model": ("model",),
    "service": ("service",),
}

show_no_type_of_flags()


class _Commands(OneLineGroup):
    """All commands, each imported when it is asked for."""

    def __init__(self, **settings: Any) -> None:
        """Take what typer has read of the callback, which stands for all commands."""
        super().__init__(**settings)
        modules = {f"pgqueue_embed.cli.{file}": names for file, names in COMMANDS.items()}
        self.commands: Any = LazyCommands(modules)

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands, in the order of the help text."""
        del ctx
        return list(self.commands)


app = typer.Typer(
    name="pgembed",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"pgembed {VERSION}")
        raise typer.Exit


@app.callback()
def pgembed(
    ctx: typer.Context,
    log_level: LogLevel = None,
    log_file: LogFile = None,
    log_format: LogFormat = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Turn a text column of a PostgreSQL table into pgvector rows, on as many machines as you have.

    Start here: [bold]pgembed demo[/bold], or on your own table [bold]pgembed run NAME
    --source-table reports[/bold].
    """
    ctx.obj = {"log_level": log_level, "log_file": log_file, "log_format": log_format}
