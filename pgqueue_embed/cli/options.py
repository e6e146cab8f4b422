"""The options that every command has: which database is meant, and how to log."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_type_hints

import typer

from pgqueue_embed.cli.display import say
from pgqueue_embed.cli.empty_options import refuse_empty_options
from pgqueue_embed.db.names import split_columns
from pgqueue_embed.pipeline.option import Option

if TYPE_CHECKING:
    from pgqueue_embed.configuration.conninfo import DatabaseOptions
    from pgqueue_embed.log import LogSettings

CONNECTION = "Connection"
LOGGING = "Logging"

Dsn = Annotated[
    str | None,
    typer.Option(
        "--dsn",
        help="postgresql://… or libpq key/value string; else PGEMBED_DSN, DATABASE_URL, PG*"
        " variables, pgembed.toml, or the private server.",
        rich_help_panel=CONNECTION,
        show_default=False,
    ),
]
Host = Annotated[
    str | None,
    typer.Option("--db-host", help="Host or socket folder.", rich_help_panel=CONNECTION),
]
Port = Annotated[
    int | None,
    typer.Option("--db-port", help="Port.", rich_help_panel=CONNECTION, min=1, max=65535),
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


class OptionGroup:
    """Options of a table as one argument of a command; `given` has their values by name.

    `named` are those that a person gave, which may be the default, too.
    """

    options: ClassVar[tuple[Option, ...]]

    def __init__(self, **given: Any) -> None:
        self.named = frozenset(given)
        self.given = {**{each.name: each.default for each in self.options}, **given}

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """Return the options as parameters that typer reads."""
        return [_option(each.name, each.default, annotation(each)) for each in cls.options]


def annotation(option: Option) -> Any:
    """Return the type of an option on the command line, with all that typer says of it."""
    type_ = list[str] if option.type in (list, dict) else option.type
    usual = f" \\[default: {option.usual}]" if option.usual else ""
    names = [option.flag, option.short] if option.short else [option.flag]
    if option.type is bool and option.default is None:
        names = [f"{option.said(True)}/{option.said(False)}"]
    elif option.type is bool and option.default:
        # What is so anyway need not be said.
        names = [f" /{option.said(False)}"]
    shown = typer.Option(
        *names,
        help=f"{option.help}{usual}",
        metavar=option.metavar,
        rich_help_panel=option.panel,
        show_default=option.default is not None,
    )
    return Annotated[type_ if option.default is not None else type_ | None, shown]


def listed_columns(lists: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that an option names, given once or often: ``a,b`` or ``a``, ``b``."""
    return tuple(name for each in lists for name in split_columns(each))


def connected(
    command: Callable[..., None], *, may_make_server: bool = False
) -> Callable[..., None]:
    """Give `command` the connection and logging options and, as first argument, its conninfo.

    A parameter whose type is a dataclass or an OptionGroup is a group of options: the command line
    has an option for each of its fields in its place, and the command is called with the object. A
    parameter `file` is the configuration file; other commands read the one in the working folder,
    if there is one, for the database. Where none is named and there is no private server yet, it is
    made for those alone that `may_make_server`.
    """
    hints = get_type_hints(command, include_extras=True)
    own = list(inspect.signature(command).parameters.values())[1:]
    groups = {each.name: hints[each.name] for each in own if _is_group(hints[each.name])}
    options = [
        option
        for each in own
        for option in (
            _options_of(groups[each.name])
            if each.name in groups
            else [_option(each.name, each.default, hints[each.name])]
        )
    ]
    shared = [_option(name, None, option) for name, option in SHARED_OPTIONS.items()]
    context = inspect.Parameter(
        "ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
    )

    @functools.wraps(command)
    def wrapper(ctx: typer.Context, **values: Any) -> None:
        refuse_empty_options(ctx, _may_be_empty(groups.values()))
        given = {name: values.pop(name) for name in SHARED_OPTIONS}
        _configure_log({name: given.pop(name) for name in LOG_OPTIONS}, ctx.obj or {})
        for name, group in groups.items():
            of_group = {each.name: values.pop(each.name) for each in _options_of(group)}
            values[name] = group(**_named(ctx, of_group))
        conninfo = _conninfo(given, values.get("file"), may_make_server=may_make_server)
        command(conninfo, **values)

    parameters = [context, *options, *shared]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapper


def _named(ctx: typer.Context, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values that were given; for the others, a group has the same defaults."""
    return {
        name: value
        for name, value in values.items()
        if getattr(ctx.get_parameter_source(name), "name", "DEFAULT") != "DEFAULT"
    }


def _may_be_empty(groups: Iterable[type[Any]]) -> set[str]:
    """Return the names of options to which an empty value is one."""
    tables = [each.options for each in groups if issubclass(each, OptionGroup)]
    return {option.name for table in tables for option in table if option.may_go}


def _is_group(hint: Any) -> bool:
    return is_dataclass(hint) or (isinstance(hint, type) and issubclass(hint, OptionGroup))


def _options_of(group: type[Any]) -> list[inspect.Parameter]:
    if issubclass(group, OptionGroup):
        return group.parameters()
    hints = get_type_hints(group, include_extras=True)
    return [_option(each.name, each.default, hints[each.name]) for each in fields(group)]


def _option(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


_chosen_log: dict[str, Any] = {}


def _configure_log(given: dict[str, Any], earlier: dict[str, Any]) -> None:
    """Take the logging options, those before the command where it has none of its own."""
    _chosen_log.clear()
    _chosen_log.update({name: given[name] or earlier.get(name) for name in LOG_OPTIONS})
    if any(_chosen_log.values()):
        log_settings().apply()


def wants_log() -> bool:
    """Return whether a person has asked for the log on standard error."""
    chosen = _chosen_log.get("log_level") or _chosen_log.get("log_format")
    return bool(chosen) and not _chosen_log.get("log_file")


def log_settings(*, quiet: bool = False) -> LogSettings:
    """Return how this command and its worker processes log; `quiet` hides less than warnings."""
    from pgqueue_embed.log import LogSettings

    file = _chosen_log.get("log_file")
    return LogSettings(
        level=_chosen_log.get("log_level") or ("warning" if quiet and not file else "info"),
        file=str(file) if file else None,
        style=_chosen_log.get("log_format") or "console",
    )


def _conninfo(shared: dict[str, Any], file: Path | None, *, may_make_server: bool) -> str:
    from pgqueue_embed.configuration import DEFAULT_FILE
    from pgqueue_embed.configuration.conninfo import DatabaseOptions, resolve_conninfo

    options = DatabaseOptions(
        dsn=shared["dsn"],
        host=shared["db_host"],
        port=shared["db_port"],
        name=shared["db_name"],
        user=shared["db_user"],
        password=shared["db_password"],
    )
    in_working_folder = DEFAULT_FILE if DEFAULT_FILE.is_file() else None
    conninfo = resolve_conninfo(options, file=file or in_working_folder, may_make=may_make_server)
    _warn_of_shown_password(options, conninfo)
    return conninfo


def _warn_of_shown_password(options: DatabaseOptions, conninfo: str) -> None:
    """Tell a person that other users of this machine can read what is typed on a command line."""
    from psycopg.conninfo import conninfo_to_dict

    option = "--db-password" if options.password else "--dsn"
    given = options.password or options.dsn
    if given and {"password", "sslpassword"} & conninfo_to_dict(conninfo).keys():
        say(
            f"warning: the password in {option} shows in `ps`; use PGPASSWORD or ~/.pgpass",
            err=True,
        )
