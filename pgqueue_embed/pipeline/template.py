"""Templates of documents and of the context around chunks: ``$title: $text``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pgqueue_embed.db.names import check_identifier
from pgqueue_embed.errors import UsageError

CHUNK = "chunk"

# $$, $name, ${any name}, a lone dollar, and what a shell leaves of a line break.
_TOKEN = re.compile(r"\$\$|\$\{([^{}]*)\}|\$([^\W\d]\w*)|\$|\\[nt\\]")
_BARE = re.compile(r"[^\W\d]\w*")
_ESCAPED = re.compile(r"\\[nt\\]")
_ESCAPES = {"$$": "$", "\\n": "\n", "\\t": "\t", "\\\\": "\\"}


@dataclass(frozen=True)
class Field:
    """A place in a template where the text of a column goes."""

    name: str


TemplatePart = str | Field


def parse_template(text: str, option: str) -> tuple[TemplatePart, ...]:
    """Return the literal texts and fields of a template, in order.

    ``$name`` or ``${any name}`` is a field, ``$$`` a dollar; ``\\n``, ``\\t`` and ``\\\\`` are what
    they are in most languages. Raises UsageError, naming `option`, for any other dollar and for a
    template without a field.
    """
    parts: list[TemplatePart] = []
    end = 0
    for token in _TOKEN.finditer(text):
        parts += [text[end : token.start()], _part(token, option)]
        end = token.end()
    merged = _merge([*parts, text[end:]])
    if not field_names(merged):
        raise UsageError(f"{option} '{text}' names no column; write $column, and $$ for a dollar")
    return merged


def unescaped(text: str) -> str:
    """Return `text` with line breaks and tabs for what a shell leaves of them."""
    return _ESCAPED.sub(lambda found: _ESCAPES[found[0]], text)


def with_names(text: str, names: Mapping[str, str]) -> str:
    """Return a template with other names in the place of those that are in `names`."""

    def renamed(token: re.Match[str]) -> str:
        name = token[1] or token[2]
        if name not in names:
            return token[0]
        is_bare = token[2] is not None and _BARE.fullmatch(names[name])
        return f"${names[name]}" if is_bare else f"${{{names[name]}}}"

    return _TOKEN.sub(renamed, text)


def _part(token: re.Match[str], option: str) -> TemplatePart:
    name = token[1] if token[1] is not None else token[2]
    if name is not None:
        check_identifier(name)
        return Field(name)
    if token[0] == "$":
        raise UsageError(
            f"{option}: the $ at character {token.start() + 1} names no column; write $column,"
            " ${any column} or $$ for a dollar"
        )
    return _ESCAPES[token[0]]


def _merge(parts: Sequence[TemplatePart]) -> tuple[TemplatePart, ...]:
    merged: list[TemplatePart] = []
    for part in parts:
        last = merged[-1] if merged else None
        if isinstance(part, str) and isinstance(last, str):
            merged[-1] = last + part
        elif part:
            merged.append(part)
    return tuple(merged)


def field_names(parts: Sequence[TemplatePart]) -> tuple[str, ...]:
    """Return the names of the fields, each once, in order."""
    return tuple(dict.fromkeys(part.name for part in parts if isinstance(part, Field)))


def split_at_chunk(
    parts: Sequence[TemplatePart],
) -> tuple[tuple[TemplatePart, ...], tuple[TemplatePart, ...]]:
    """Return what a chunk template puts before and after the chunk.

    Raises UsageError unless it says ``$chunk`` exactly once and names a column beside it.
    """
    places = [place for place, part in enumerate(parts) if part == Field(CHUNK)]
    if len(places) != 1 or len(field_names(parts)) < 2:
        raise UsageError(
            "--chunk-template: write $chunk once, and at least one column beside it, such as"
            " '$title\\n$chunk'"
        )
    return tuple(parts[: places[0]]), tuple(parts[places[0] + 1 :])
