"""A pipeline that is there already, beside what is asked for under its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from pgqueue_embed.configuration.declared import SYNC, declared_settings
from pgqueue_embed.configuration.values import Value, value_text
from pgqueue_embed.db.names import join_columns, join_qualified, parse_table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.embedding import full_name
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.catalog import load_pipeline, pipeline_names
from pgqueue_embed.pipeline.option import Option
from pgqueue_embed.pipeline.options import ALTERABLE, PIPELINE_OPTIONS, Beside
from pgqueue_embed.pipeline.spec import AUTO
from pgqueue_embed.untrusted.shell import command

Made = TypeVar("Made")

TABLES = ("source_table", "target_table")


def make_or_keep(
    connection: Connection, name: str, asked: Mapping[str, Any], make: Callable[[], Made]
) -> Made | None:
    """Return `make()`, or None where the pipeline is there already and as it is `asked` for.

    `asked` are the options that were given, by name. So it is, too, if another session makes the
    same pipeline at this moment. Raises UsageError for one that is another way, and as `make` does.
    """
    if name not in pipeline_names(connection):
        try:
            return make()
        except UsageError:
            # The name, or the target that comes with it, may have been free a moment ago.
            if name not in pipeline_names(connection):
                raise
    refuse_differences(connection, name, asked)
    return None


def refuse_differences(connection: Connection, name: str, asked: Mapping[str, Any]) -> None:
    """Raise UsageError for options that the pipeline called `name` has otherwise; it lists them."""
    pipeline = load_pipeline(connection, name)
    present = declared_settings(connection, pipeline)
    columns = vars(pipeline.spec.columns)
    differences = {
        key: (value_text(is_), value_text(wanted))
        for key, is_, wanted in _compared(present, columns, asked)
        if wanted not in (is_, AUTO)
    }
    if differences:
        listed = ", ".join(
            f"{key} {is_} (not {wanted})" for key, (is_, wanted) in differences.items()
        )
        raise UsageError(
            f"pipeline '{name}' is there already, with {listed}; nothing was done."
            f" {_way_out(name, differences)}"
        )


def _compared(
    present: Mapping[str, Value], columns: Mapping[str, Any], asked: Mapping[str, Any]
) -> Iterator[tuple[str, Value, Value]]:
    """Yield what was asked for: its key, how it is, and how it is wanted."""
    schema = asked.get("db_schema") or Beside.db_schema
    for key, value in asked.items():
        option = PIPELINE_OPTIONS[key]
        if key == "target_column":
            for meaning, name in value.items():
                yield f"{key} {meaning}", _joined(columns.get(meaning)), name
        elif key != "db_schema" and (key in present or option.default is None):
            yield key, present.get(key), _wanted(option, value, schema)


def _joined(names: Any) -> Any:
    return join_columns(names) if isinstance(names, tuple) else names


def _wanted(option: Option, value: Any, schema: str) -> Value:
    """Return the value of an option as `declared_settings` has it."""
    if option.name in TABLES:
        table = parse_table(value, schema)
        return join_qualified(table.schema, table.name)
    if option.name == "model":
        return full_name(value)
    if isinstance(value, tuple):
        names = [join_columns([each]) for each in value]
        return names[0] if len(names) == 1 else names
    return value


def _way_out(name: str, differences: Mapping[str, tuple[str, str]]) -> str:
    if differences.keys() == {SYNC}:
        return f"Capture its changes: {command('sync', name, '--on')}"
    if differences.keys() <= ALTERABLE.keys():
        wanted = [
            word
            for key, (_, value) in differences.items()
            for word in _as_option(ALTERABLE[key], value)
        ]
        return f"Alter it: {command('alter', name, *wanted)}, or give the new one another name"
    return (
        "Give the new one another name (and --target-table), or leave out what the old one has"
        f" otherwise; some settings can be altered: {command('alter', name, '--help')}"
    )


def _as_option(option: Option, value: str) -> tuple[str, ...]:
    if option.type is bool:
        return (option.said(value == "true"),)
    return (option.flag, value)
