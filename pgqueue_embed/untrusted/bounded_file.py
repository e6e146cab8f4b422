"""Reads files of any origin, up to a size limit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# The largest file of a model that is not weights is its tokenizer: 17 MB for 250,000 tokens.
MOST_JSON_BYTES = 64 * 1024**2


class UnreadableFile(Exception):
    """A file is too large, or not what it is to be; the text says which, on one line."""


def read_bounded(path: Path, most_bytes: int) -> str:
    """Return the text of a UTF-8 file; raises UnreadableFile beyond `most_bytes`, or OSError.

    No more is read than that, whatever stands in its place.
    """
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise UnreadableFile(f"{path} has more than {most_bytes:,} bytes")
    try:
        # An editor on Windows may have put a mark before the text.
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise UnreadableFile(f"{path} is not UTF-8") from None


def read_json(path: Path, most_bytes: int = MOST_JSON_BYTES) -> Any:
    """Return the value of a JSON file; raises UnreadableFile or OSError."""
    try:
        return json.loads(read_bounded(path, most_bytes))
    except ValueError as error:
        raise UnreadableFile(f"{path} is not valid JSON: {error}") from None
    except RecursionError:
        raise UnreadableFile(f"{path} is not valid JSON: it is nested too deeply") from None
