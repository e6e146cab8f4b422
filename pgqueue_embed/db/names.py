"""Names of PostgreSQL: of columns and tables, read, checked and written."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from psycopg import sql

from pgqueue_embed.errors import UsageError

# PostgreSQL cuts longer identifiers silently.
MAX_IDENTIFIER_BYTES = 63

NEXT = "_next"

# A name in double quotes, those inside it doubled.
QUOTED = r'"(?:[^"]|"")*"'


def check_identifier(name: str) -> None:
    """Raise UsageError unless PostgreSQL can have a table or column of this name."""
    if not name or "\x00" in name:
        raise UsageError("a table or column name is empty or holds a NUL character")
    if len(name.encode()) > MAX_IDENTIFIER_BYTES:
        raise UsageError(
            f"the name '{name}' is longer than PostgreSQL's {MAX_IDENTIFIER_BYTES} bytes"
        )
    if "%" in name:
        # psycopg would take it for a placeholder in every statement that has the name in it.
        raise UsageError(f"the name '{name}' holds a %; rename it, or make a view without it")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean reports?`` where `name` is much like one of `known`, else nothing."""
    # Imported for a mistake alone.
    from difflib import get_close_matches

    lower = {each.lower(): each for each in known}
    close = get_close_matches(name.lower(), lower, n=1, cutoff=0.75)
    return f"; did you mean {lower[close[0]]}?" if close else ""


def next_name(name: str) -> str:
    """Return what the next generation of the table, column or index `name` is called."""
    return with_suffix(name, NEXT)


def with_suffix(name: str, suffix: str) -> str:
    """Return `name`, cut where PostgreSQL would cut the end off, and `suffix`."""
    stem = name.encode()[: MAX_IDENTIFIER_BYTES - len(suffix)].decode(errors="ignore")
    return stem + suffix


def split_qualified(text: str) -> list[str]:
    """Return the parts of ``table``, ``schema.table`` or ``"a.b"."c"``; UsageError if it is none.

    A dot inside double quotes does not split; a doubled quote inside quotes stands for one.
    """
    parts = _split(text, ".")
    if parts is None or len(parts) > 2:
        raise UsageError(f"'{text}' is not a table name; write table or schema.table")
    return parts


def split_columns(text: str) -> tuple[str, ...]:
    """Return the columns of ``a``, ``a,b`` or ``"a,b", c``; UsageError for what is no such list."""
    parts = _split(text, ",")
    if parts is None:
        raise UsageError(
            f"'{text}' is not a list of columns; write a,b and put a name with a comma or a"
            ' double quote into double quotes: "a,b"'
        )
    return tuple(parts)


def join_columns(names: Iterable[str]) -> str:
    """Return what `split_columns` reads as `names`."""
    return ",".join(quoted(name) if re.search(r'[",]|^\s|\s$', name) else name for name in names)


def join_qualified(schema: str, name: str) -> str:
    """Return what `split_qualified` reads as these two."""
    return ".".join(
        quoted(part) if re.search(r'[".]|^\s|\s$', part) else part for part in (schema, name)
    )


def quoted(name: str) -> str:
    """Return a name in double quotes, as SQL and `split_qualified` read it."""
    return '"' + name.replace('"', '""') + '"'


def _split(text: str, separator: str) -> list[str] | None:
    parts: list[list[str]] = [[]]
    # A quote that nothing closes is a token by itself, and makes no name.
    for token in re.findall(rf'{QUOTED}|[^"{separator}]+|.', text, re.DOTALL):
        if token == separator:
            parts.append([])
        else:
            parts[-1].append(token)
    names = ["".join(tokens).strip() for tokens in parts]
    return [_unquoted(name) for name in names] if all(map(_is_name, names)) else None


def _is_name(part: str) -> bool:
    return bool(re.fullmatch(rf'{QUOTED}|[^"]+', part))


def _unquoted(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part


@dataclass(frozen=True, kw_only=True)
class Table:
    """The name of a table or view."""

    schema: str
    name: str

    def __post_init__(self) -> None:
        check_identifier(self.schema)
        check_identifier(self.name)

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def identifier(self) -> sql.Identifier:
        """The name as part of an SQL statement."""
        return sql.Identifier(self.schema, self.name)

    @property
    def quoted(self) -> str:
        """The name as text that a cast to regclass reads."""
        return self.identifier.as_string()


def parse_table(text: str, default_schema: str) -> Table:
    """Return the table that `text` names: ``table``, ``schema.table`` or ``"a.b"."c"``.

    Raises UsageError for a name that PostgreSQL cannot have.
    """
    parts = split_qualified(text)
    return Table(schema=parts[0] if len(parts) == 2 else default_schema, name=parts[-1])
