"""The document of a record: an SQL expression over the source, from which text and hash come.

It is one column, several with a blank line between them, or a template over any columns. What a
chunk template puts around every chunk is no part of the document, but it is of the hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from pgqueue_embed.pipeline.columns import Column, literal
from pgqueue_embed.pipeline.template import (
    Field,
    TemplatePart,
    field_names,
    parse_template,
    split_at_chunk,
)

BETWEEN_FIELDS = "\n\n"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a document is made: of `text_fields`, or by `template` where there is one.

    `chunk_template` is what the model reads in place of a bare chunk. Raises UsageError for a
    template that cannot be read.
    """

    text_fields: tuple[str, ...] = ()
    template: str | None = None
    chunk_template: str | None = None

    def __post_init__(self) -> None:
        self.names()

    def names(self) -> tuple[str, ...]:
        """Return the names of all columns that take part, each once."""
        before, after = self.around_chunk()
        named = (*self.document_names(), *field_names((*before, *after)))
        return tuple(dict.fromkeys(named))

    def parts(self) -> tuple[TemplatePart, ...]:
        """Return the parts of the template; none without one."""
        return () if self.template is None else parse_template(self.template, "--template")

    def around_chunk(self) -> tuple[tuple[TemplatePart, ...], tuple[TemplatePart, ...]]:
        """Return what goes before and after every chunk."""
        if self.chunk_template is None:
            return (), ()
        return split_at_chunk(parse_template(self.chunk_template, "--chunk-template"))

    def document_names(self) -> tuple[str, ...]:
        """Return the names of those that the document is made of."""
        return self.text_fields if self.template is None else field_names(self.parts())


@dataclass(frozen=True, kw_only=True)
class Document:
    """A recipe with the `columns` of the source that it names, each once.

    The values of those that are `copied` stand beside each of its chunks.
    """

    recipe: Recipe
    columns: tuple[Column, ...]
    copied: tuple[Column, ...] = ()

    def __str__(self) -> str:
        return self.recipe.template or ", ".join(self.recipe.text_fields)

    def text(self, alias: str) -> sql.Composable:
        """Return the document of the record `alias`; null or '' for one without text."""
        if self.recipe.template is not None:
            return self._filled(self.recipe.parts(), alias)
        texts = [self._text(name, alias) for name in self.recipe.text_fields]
        if len(texts) == 1:
            return texts[0]
        return _joined([sql.SQL("nullif({}, '')").format(text) for text in texts], BETWEEN_FIELDS)

    def hash(self, alias: str) -> sql.Composable:
        """Return the SHA-256 of everything that the chunks of the record `alias` come from."""
        document = sql.SQL("sha256(convert_to(coalesce({}, ''), 'UTF8'))").format(self.text(alias))
        others = []
        if self.recipe.chunk_template is not None:
            others.append(self.context(alias))
        if self.copied:
            values = sql.SQL(", ").join(column.exact_text_of(alias) for column in self.copied)
            others.append(sql.SQL("array[{}]").format(values))
        if not others:
            return document
        # The text of a list tells NULL from '' and from 'NULL', and where one value ends.
        hashes = [sql.SQL("sha256(convert_to({}::text, 'UTF8'))").format(each) for each in others]
        return sql.SQL("sha256({})").format(sql.SQL(" || ").join([document, *hashes]))

    def context(self, alias: str) -> sql.Composable:
        """Return the list of the texts before and after every chunk of the record `alias`.

        Null without a chunk template.
        """
        if self.recipe.chunk_template is None:
            return sql.SQL("null::text[]")
        before, after = self.recipe.around_chunk()
        return sql.SQL("array[{}, {}]").format(self._all(before, alias), self._all(after, alias))

    def _filled(self, parts: Sequence[TemplatePart], alias: str) -> sql.Composable:
        """Fill in a template, unless nothing but its own text would be in it."""
        some_text = sql.SQL(" or ").join(
            sql.SQL("{} ~ '[^[:space:]]'").format(self._text(name, alias))
            for name in field_names(parts)
        )
        return sql.SQL("case when {} then {} end").format(some_text, self._all(parts, alias))

    def _all(self, parts: Sequence[TemplatePart], alias: str) -> sql.Composable:
        return _joined(
            [
                self._text(part.name, alias) if isinstance(part, Field) else literal(part)
                for part in parts
            ],
            "",
        )

    def _text(self, name: str, alias: str) -> sql.Composable:
        (column,) = (column for column in self.columns if column.name == name)
        return column.text_of(alias)


def _joined(texts: Sequence[sql.Composable], separator: str) -> sql.Composable:
    # Not concat_ws: a function takes at most 100 arguments, and a table has more columns.
    return sql.SQL("array_to_string(array[{}]::text[], {})").format(
        sql.SQL(", ").join(texts), literal(separator)
    )
