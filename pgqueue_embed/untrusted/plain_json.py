"""Values of PostgreSQL as JSON has them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

# Half of a pair is in no text that comes from PostgreSQL: it marks the digits of a number.
MARK = "\ud800"
MARKED = re.compile(f'"{MARK}([^"]*)"')


def json_text(value: Any, *, indent: int | None = None, allow_nan: bool = False) -> str:
    """Return `value` as JSON: times in ISO 8601, durations in seconds, bytes as PostgreSQL's.

    A number has all its digits, as PostgreSQL's own JSON: who reads it may have fewer.
    """
    text = json.dumps(value, default=_plain, ensure_ascii=False, indent=indent, allow_nan=allow_nan)
    return MARKED.sub(r"\1", text) if MARK in text else text


def exact_json(text: str | bytes) -> Any:
    """Read JSON, its fractions as Decimal, with all their digits."""
    try:
        return json.loads(text, parse_float=Decimal)
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python makes no int of more than 4,300 digits
        return json.loads(text, parse_float=Decimal, parse_int=Decimal)


def _plain(value: Any) -> Any:
    """Return what stands in JSON for a value that json does not know."""
    if isinstance(value, Decimal):
        return MARK + _digits(value) if value.is_finite() else str(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"\\x{bytes(value).hex()}"
    return str(value)


def _digits(value: Decimal) -> str:
    text = str(value)
    return text.rstrip("0").rstrip(".") if "." in text and "E" not in text else text


def finite(value: Any) -> Any:
    """Return `value` with texts for the numbers that JSON has not: NaN, Infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    if isinstance(value, Mapping):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return value
