"""Values of a configuration file, and how they are shown."""

from __future__ import annotations

from typing import Any

# What TOML has for them: text, numbers, truth, lists of text, and a table of these.
Value = Any


def value_text(value: Value | None) -> str:
    """Return a value of a file for reading."""
    if isinstance(value, dict):
        return ", ".join(f"{key} = {value_text(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    return "unset" if value is None else str(value)
