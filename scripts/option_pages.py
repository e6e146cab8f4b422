"""Writes what documents say of a pipeline's options, and the schema of its file: ``make docs``.

The schema, docs/pgembed.schema.json, lets editors complete and check pgembed.toml.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pgqueue_embed.cli.declared_pipelines import INDEX_KEYS
from pgqueue_embed.configuration.database import PARTS
from pgqueue_embed.configuration.values import value_text
from pgqueue_embed.pipeline.option import Option
from pgqueue_embed.pipeline.options import PIPELINE_OPTIONS
from pgqueue_embed.pipeline.target_columns import TargetColumns

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "configuration-file.md"
SCHEMA = DOCS / "pgembed.schema.json"

BEGIN, END = "<!-- keys: made by make docs -->\n", "<!-- end of keys -->\n"

TYPES = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    list: "text or list",
    dict: "table",
}
JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}

# What a person would type, or a program reads: fields of a template, options, a name with a blank.
CODE = re.compile(r"'([^']*\$[^']*)'|(\$\{[^}]*\}|\$\$|<\w+>\w*|--[a-z-]+(?: none| on)?)")

NAMES: dict[str, Any] = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]
}


def page() -> str:
    """Return docs/configuration-file.md with the table of keys as it is to be."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n".join(_rows()) + "\n" + END + rest.split(END)[1]


def _rows() -> Iterator[str]:
    yield from ("", "| key | value | default | |", "|---|---|---|---|")
    for option in PIPELINE_OPTIONS.values():
        more = f" ([more]({option.more}))" if option.more else ""
        default = _default(option) + " " if _default(option) else ""
        yield f"| `{option.name}` | {_type(option)} | {default}| {_help(option)}{more} |"
    yield ""


def _type(option: Option) -> str:
    if option.name == "index":
        return "text or table"
    return TYPES[option.type] + (f" of {option.unit}s" if option.unit else "")


def _default(option: Option) -> str:
    return option.usual or ("" if option.default is None else f"`{value_text(option.default)}`")


def _help(option: Option) -> str:
    def code(match: re.Match[str]) -> str:
        return f"`{(match[1] or match[2])}`".replace(r"\\", "\\")

    return CODE.sub(code, option.help)


def schema() -> str:
    """Return the JSON schema of pgembed.toml."""
    database: dict[str, Any] = {each: {"type": "string"} for each in ("dsn", *PARTS)}
    database["port"] = {"type": "integer", "minimum": 1}
    pipeline = {
        "type": "object",
        "properties": {name: _property(each) for name, each in PIPELINE_OPTIONS.items()},
        "required": ["source_table"],
        "additionalProperties": False,
    }
    whole = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "pgembed.toml",
        "description": "Pipelines of pgembed, and the database that they are in.",
        "type": "object",
        "properties": {
            "database": {"type": "object", "properties": database, "additionalProperties": False},
            "pipelines": {"type": "object", "additionalProperties": pipeline},
        },
        "additionalProperties": False,
    }
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _property(option: Option) -> dict[str, Any]:
    if option.name == "index":
        return _index(option)
    usual = f" Default: {option.usual}." if option.usual else ""
    said = {
        "description": option.help.replace(r"\\", "\\") + usual,
        "default": option.default,
        "enum": list(option.choices) or None,
        "minimum": option.minimum,
        "maximum": option.maximum,
    }
    return {
        **_json_type(option),
        **{key: value for key, value in said.items() if value is not None},
    }


def _json_type(option: Option) -> dict[str, Any]:
    if option.type is list:
        return NAMES
    if option.type is dict:
        names = {
            meaning: NAMES if isinstance(name, tuple) else {"type": "string"}
            for meaning, name in vars(TargetColumns()).items()
        }
        return {"type": "object", "properties": names, "additionalProperties": False}
    return {"type": JSON_TYPES[option.type]}


def _index(option: Option) -> dict[str, Any]:
    """Return the schema of the index: its method, or a table of that and more."""
    quantize = _property(PIPELINE_OPTIONS[INDEX_KEYS["quantize"]])
    method = {"type": "string", "enum": list(option.choices)}
    table = {
        "type": "object",
        "properties": {"method": method, "quantize": quantize},
        "required": ["method"],
        "additionalProperties": False,
    }
    return {"description": option.help, "anyOf": [method, table]}


def main() -> None:
    """Write both."""
    PAGE.write_text(page(), encoding="utf-8")
    SCHEMA.write_text(schema(), encoding="utf-8")


if __name__ == "__main__":
    main()
