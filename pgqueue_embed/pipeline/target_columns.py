"""The columns of a target table, by their meaning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from pgqueue_embed.db.names import check_identifier, split_columns
from pgqueue_embed.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class TargetColumns:
    """The name of each column of a target table, by its meaning.

    `fulltext_id` is the source key, in a column of its own for each of the key's columns. A table
    has `text_chunk` or, where texts are not stored, `text_hash`.
    """

    id: str = "id"
    fulltext_id: tuple[str, ...] = ("fulltext_id",)
    chunk_id: str = "chunk_id"
    chunk_index: str = "chunk_index"
    text_chunk: str = "text_chunk"
    text_hash: str = "text_hash"
    start_char: str = "start_char"
    end_char: str = "end_char"
    tokens: str = "tokens"
    embedding: str = "embedding"
    created_at: str = "created_at"

    def __post_init__(self) -> None:
        names = list(self.names())
        for name in names:
            check_identifier(name)
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"the target table would have two columns named '{name}'")

    def names(self) -> Iterator[str]:
        """Yield all names, those of either kind of table, in the order of the table."""
        for name in vars(self).values():
            yield from name if isinstance(name, tuple) else (name,)

    def of_table(self, *, text: bool, ids: bool) -> Iterator[str]:
        """Yield the names of the columns of a table that stores texts, or not, and ids, or not."""
        lacking = {self.text_hash if text else self.text_chunk}
        if not ids:
            lacking |= {self.id, self.chunk_id}
        return (name for name in self.names() if name not in lacking)

    def renamed(self, names: dict[str, str]) -> TargetColumns:
        """Return the same columns with those in `names` (meaning to name) called otherwise.

        A name of `fulltext_id` may be a list, ``tenant,report``. Raises UsageError for a meaning
        that there is not, or a name that cannot be.
        """
        known = [each.name for each in fields(self)]
        for meaning in names:
            if meaning not in known:
                raise UsageError(f"unknown target column '{meaning}'; there are {', '.join(known)}")
        values: dict[str, Any] = dict(names)
        if "fulltext_id" in names:
            values["fulltext_id"] = split_columns(names["fulltext_id"])
        return replace(self, **values)

    def for_key(self, key_columns: Sequence[str]) -> TargetColumns:
        """Return the columns with one for each of `key_columns`: of several, ``fulltext_<name>``.

        Raises UsageError when names were given for another number of columns.
        """
        given = self.fulltext_id
        if len(key_columns) == len(given):
            return self
        if given != ("fulltext_id",):
            raise UsageError(
                f"the key has {len(key_columns)} columns ({', '.join(key_columns)}) and"
                f" --target-column fulltext_id names {len(given)}; name as many"
            )
        return replace(self, fulltext_id=tuple(f"fulltext_{name}" for name in key_columns))
