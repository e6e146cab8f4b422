"""Names in the SQL of a condition, as far as they matter to whose code it runs."""

from __future__ import annotations

import re

# Looked for at the beginning of a word alone, in time that grows with the length.
NAME = r'(?:"(?:[^"]|"")+"|(?<![\w$])[^\W\d][\w$]*)'
QUALIFIED = re.compile(rf"({NAME})\s*\.\s*({NAME}|[-+*/<>=~!@#%^&|`?]+)")

# One with a backslash in front of a quote ends too early: what follows is taken for names, too.
STRING = re.compile(r"'(?:[^']|'')*'")

# A record as a whole, and not one of its columns.
WHOLE_ROW = re.compile(r"\bsource\b(?!\s*\.)", re.IGNORECASE)


def names_whole_rows(condition: str) -> bool:
    """Return whether a condition may name rows of the source as they are: all of their columns."""
    return WHOLE_ROW.search(condition) is not None


def qualified_names(condition: str) -> list[tuple[str, str]]:
    """Return schema and name of what a condition names by both: nothing else can be a user's.

    Some of it is a column of the source, or stands in a text; no function is called so, as a rule.
    """
    return [(_bare(schema), _bare(name)) for schema, name in QUALIFIED.findall(condition)]


def possible_columns(condition: str) -> list[str]:
    """Return all names in a condition: those of its columns, and of types, functions and so on."""
    return [_bare(name) for name in re.findall(NAME, STRING.sub("''", condition))]


def _bare(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()
