"""Keys in their own types, as a program has them, and their texts, as the queue has them.

A program gets a key as psycopg reads it, of several columns a tuple; what takes a key takes that
or its text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import date, datetime, timezone
from typing import Any, TypeAlias
from uuid import UUID

from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.key import Key

KeyValue: TypeAlias = int | str | UUID | date | datetime
RecordKey: TypeAlias = KeyValue | tuple[KeyValue, ...]

# By PostgreSQL's type; a datetime is a date, and a bool an int, which they are not meant to be.
VALUES: dict[str, type] = {
    "smallint": int,
    "integer": int,
    "bigint": int,
    "uuid": UUID,
    "date": date,
    "timestamp with time zone": datetime,
    "text": str,
}


def key_of(values: Sequence[Any]) -> RecordKey:
    """Return a key out of the values of its columns."""
    return values[0] if len(values) == 1 else tuple(values)


def key_text(key: Key, given: Any) -> str:
    """Return the text of a key in the queue, the ledger and pgembed.dead_letters.

    A text is taken for that. Raises UsageError for what can be no key of these columns.
    """
    if isinstance(given, str):
        return given
    if len(key.columns) == 1:
        return str(_part(key, 0, given, joint=" "))
    if not isinstance(given, (tuple, list)) or len(given) != len(key.columns):
        raise UsageError(
            f"a key of {key} is a tuple of {len(key.columns)} values, or its text; {given!r} is"
            " neither"
        )
    parts = [_part(key, position, each, joint="T") for position, each in enumerate(given)]
    return json.dumps(parts, ensure_ascii=False)


def key_texts(key: Key, given: Any) -> list[str] | None:
    """Return the texts of one key or of several; None stays.

    Of several columns a tuple is one key, unless it has tuples in it.
    """
    if given is None:
        return None
    is_row = len(key.columns) > 1 and isinstance(given, tuple)
    is_one = isinstance(given, str) or not isinstance(given, Iterable)
    if is_one or (is_row and given and not any(isinstance(each, tuple) for each in given)):
        return [key_text(key, given)]
    return [key_text(key, each) for each in given]


def _part(key: Key, position: int, given: Any, joint: str) -> int | str:
    column = key.columns[position]
    wanted = VALUES[column.type]
    if type(given) is not wanted and not (isinstance(given, wanted) and wanted in (int, str, UUID)):
        raise _no_value(column.name, given, wanted)
    if isinstance(given, bool):
        raise _no_value(column.name, given, wanted)
    if isinstance(given, datetime):
        return _instant(column.name, given, joint)
    if isinstance(given, int):
        return int(given)
    return given.isoformat() if isinstance(given, date) else str(given)


def _no_value(name: str, given: Any, wanted: type) -> UsageError:
    return UsageError(f"a key is text or, of {name}, of type {wanted.__name__}; {given!r} is not")


def _instant(name: str, given: datetime, joint: str) -> str:
    """Return a time as PostgreSQL writes it in UTC: in JSON with a T, else with a blank."""
    if given.tzinfo is None:
        raise UsageError(f"a key of {name} is a time with its zone; {given!r} has none")
    utc = given.astimezone(timezone.utc).replace(tzinfo=None)
    text = utc.isoformat(sep=joint)
    fraction = text.rstrip("0") if utc.microsecond else text
    return f"{fraction}{'+00:00' if joint == 'T' else '+00'}"
