"""Options as arguments: what a method was given, by the names that options have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.option import Option, check_names
from pgqueue_embed.pipeline.options import PIPELINE_OPTIONS

# What an option is called as an argument, if not by its name.
ARGUMENTS = {"db_schema": "schema", "target_column": "target_columns"}


def argument(option: Option) -> str:
    """Return what an option of a pipeline is called as an argument."""
    return ARGUMENTS.get(option.name, option.name)


def given_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a pipeline among `arguments`, by name; a single column is a tuple."""
    return {
        option.name: given_columns(name, value) if option.type is list else value
        for option in PIPELINE_OPTIONS.values()
        if (value := arguments.get(name := argument(option))) is not None
    }


def pipeline_name(name: Any) -> str:
    """Return the name of a pipeline; raises UsageError for what is none."""
    if not isinstance(name, str):
        raise UsageError(f"the name of a pipeline is text, and {name!r} is not")
    return name


def unusual(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `given` that are not their default: the others may not be meant."""
    return {
        name: value
        for name, value in given.items()
        if value != () and value != PIPELINE_OPTIONS[name].default
    }


def given_columns(name: str, given: Any) -> tuple[str, ...]:
    """Return the columns that argument `name` names, one or several; raises UsageError."""
    names = (given,) if isinstance(given, str) else given
    check_names(name, names)
    return tuple(names)
