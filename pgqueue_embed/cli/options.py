"""The options that every command has: which database is meant, and how to log."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from pgqueue_embed.log import LogSettings

CONNECTION = "Connection"
LOGGING = "Logging"

Dsn = Annotated[
    str | None,
    typer.Option(
        "--dsn",
        help="postgresql://… or libpq key/value string; else PGEMBED_DSN, DATABASE_URL, PG*"
        " variables, or the embedded server.",
        rich_help_panel=CONNECTION,
        show_default=False,
    ),
]
Host = Annotated[
    str | None,
    typer.Option("--db-host", help="Host or socket folder.", rich_help_panel=CONNECTION),
]
Port = Annotated[
    int | None, typer.Option("--db-port", help="Port.", rich_help_panel=CONNECTION, min=1)
]
Name = Annotated[
    str | None, typer.Option("--db-name", help="Database.", rich_help_panel=CONNECTION)
]
User = Annotated[str | None, typer.Option("--db-user", help="Role.", rich_help_panel=CONNECTION)]
Password = Annotated[
    str | None,
    typer.Option(
        "--db-password",
        help="Shows in `ps`: PGPASSWORD or ~/.pgpass are safer.",
        rich_help_panel=CONNECTION,
    ),
]
LogLevel = Annotated[
    str | None,
    typer.Option(
        "--log-level",
        help="debug, info, warning or error. \\[default: info]",
        rich_help_panel=LOGGING,
        show_default=False,
    ),
]
LogFile = Annotated[
    Path | None,
    typer.Option("--log-file", help="Append the log to a file.", rich_help_panel=LOGGING),
]
LogFormat = Annotated[
    str | None,
    typer.Option(
        "--log-format",
        help="console or json. \\[default: console]",
        rich_help_panel=LOGGING,
        show_default=False,
    ),
]

SHARED_OPTIONS: dict[str, Any] = {
    "dsn": Dsn,
    "db_host": Host,
    "db_port": Port,
    "db_name": Name,
    "db_user": User,
    "db_password": Password,
    "log_level": LogLevel,
    "log_file": LogFile,
    "log_format": LogFormat,
}
LOG_OPTIONS = ("log_level", "log_file", "log_format")


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the connection and logging options and, as first argument, its conninfo."""
    own = inspect.signature(command)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in SHARED_OPTIONS.items()
    ]
    context = inspect.Parameter(
        "ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
    )

    @functools.wraps(command)
    def wrapper(ctx: typer.Context, **values: Any) -> None:
        shared = {name: values.pop(name) for name in SHARED_OPTIONS}
        _configure_log({name: shared.pop(name) for name in LOG_OPTIONS}, ctx.obj or {})
        command(_conninfo(shared), **values)

    hints = get_type_hints(command, include_extras=True)
    kept = [
        each.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[each.name])
        for each in list(own.parameters.values())[1:]
    ]
    wrapper.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[context, *kept, *added], return_annotation=None
    )
    del hints["conninfo"]
    wrapper.__annotations__ = {**hints, **SHARED_OPTIONS, "ctx": typer.Context}
    return wrapper


_chosen_log: dict[str, Any] = {}


def _configure_log(given: dict[str, Any], earlier: dict[str, Any]) -> None:
    """Take the logging options, those before the command where it has none of its own."""
    _chosen_log.clear()
    _chosen_log.update({name: given[name] or earlier.get(name) for name in LOG_OPTIONS})
    if any(_chosen_log.values()):
        log_settings().apply()


def log_settings(*, quiet: bool = False) -> LogSettings:
    """Return how this command and its worker processes log; `quiet` hides less than warnings."""
    from pgqueue_embed.log import LogSettings

    file = _chosen_log.get("log_file")
    return LogSettings(
        level=_chosen_log.get("log_level") or ("warning" if quiet and not file else "info"),
        file=str(file) if file else None,
        style=_chosen_log.get("log_format") or "console",
    )


def _conninfo(shared: dict[str, Any]) -> str:
    from pgqueue_embed.connect import DatabaseOptions, resolve_conninfo

    if shared["db_password"]:
        typer.echo("warning: --db-password shows in `ps`; use PGPASSWORD or ~/.pgpass", err=True)
    return resolve_conninfo(
        DatabaseOptions(
            dsn=shared["dsn"],
            host=shared["db_host"],
            port=shared["db_port"],
            name=shared["db_name"],
            user=shared["db_user"],
            password=shared["db_password"],
        )
    )
