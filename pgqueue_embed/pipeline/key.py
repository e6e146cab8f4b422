"""The key of a source record: one or several columns, and one text in the queue.

The text must be the key's identity, so that one record has one entry in the queue and the ledger.
A key of one column is that column's text; a key of several is a JSON array: ``[7, "2024-05-01"]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from pgqueue_embed.pipeline.columns import Column

# Types whose text is their identity: numeric is not one, since 1 and 1.00 are one key and two
# texts. The queue's key is cast to the type on the right.
KEY_TYPES = {
    "smallint": "smallint",
    "integer": "integer",
    "bigint": "bigint",
    "uuid": "uuid",
    "date": "date",
    "timestamp with time zone": "timestamp with time zone",
    "text": "text",
    "character varying": "text",
}


@dataclass(frozen=True)
class Key:
    """The columns of a key, in order, with the types that their texts are cast to.

    The SQL of a key of several columns is a row: ``row(a, b) = row(c, d)`` and ``<`` use an
    index on both columns as they do for one column.
    """

    columns: tuple[Column, ...]

    def __str__(self) -> str:
        return ", ".join(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(column.name for column in self.columns)

    def of(self, alias: str, names: Sequence[str] | None = None) -> sql.Composable:
        """Return the key in the table `alias`, where its columns are called `names`.

        Of one column ``"source"."id"``, of two ``row("source"."a", "source"."b")``.
        """
        return _row(_identifiers(alias, names or self.names))

    @property
    def positions(self) -> tuple[str, ...]:
        """Names for the columns in a statement that passes them on: ``key_1``, ``key_2``, …"""
        return tuple(f"key_{number}" for number in range(1, len(self.columns) + 1))

    def listed(
        self, alias: str, names: Sequence[str] | None = None, suffix: str = ""
    ) -> sql.Composable:
        """Return the columns of the key in the table `alias`, with commas between them.

        With suffix `` desc``: ``"source"."a" desc, "source"."b" desc``.
        """
        columns = _identifiers(alias, names or self.names)
        return sql.SQL(", ").join(sql.SQL("{}" + suffix).format(column) for column in columns)

    def numbered(self, values: Sequence[sql.Composable]) -> sql.Composable:
        """Return `values`, one a column, under the names of `positions`.

        Say ``"source"."a" as "key_1", "source"."b" as "key_2"``.
        """
        return sql.SQL(", ").join(
            sql.SQL("{} as {}").format(value, sql.Identifier(name))
            for value, name in zip(values, self.positions, strict=True)
        )

    def values(self, text: sql.Composable) -> list[sql.Composable]:
        """Return the columns' values out of the key's text in the queue.

        Of one column ``key::bigint``, of two ``(key::json ->> 0)::date`` and
        ``(key::json ->> 1)::bigint``.
        """
        if len(self.columns) == 1:
            return [sql.SQL("{}::{}").format(text, self._type(0))]
        return [
            sql.SQL("({}::json ->> {})::{}").format(
                text, sql.Literal(position), self._type(position)
            )
            for position in range(len(self.columns))
        ]

    def value(self, text: sql.Composable) -> sql.Composable:
        """Return the key out of its text in the queue, to compare with `of`.

        Of one column ``key::bigint``, of two ``row((key::json ->> 0)::date, …)``.
        """
        return _row(self.values(text))

    def text(self, alias: str, names: Sequence[str] | None = None) -> sql.Composable:
        """Return the text in the queue of the key in the table `alias`.

        Of one column ``"source"."id"::text``, of two
        ``json_build_array("source"."a"::date, "source"."b"::bigint)::text``. To be evaluated with
        db.session.TEXT_SETTINGS.
        """
        columns = _identifiers(alias, names or self.names)
        if len(columns) == 1:
            return sql.SQL("{}::text").format(columns[0])
        typed = [
            sql.SQL("{}::{}").format(column, self._type(position))
            for position, column in enumerate(columns)
        ]
        return sql.SQL("json_build_array({})::text").format(sql.SQL(", ").join(typed))

    def plain_text(self, alias: str) -> sql.Composable:
        """Return the same text for columns of any of KEY_TYPES, whichever they are of now.

        A type that has become wider since fails no cast:
        ``json_build_array("source"."a", "source"."b")::text``.
        """
        columns = _identifiers(alias, self.names)
        if len(columns) == 1:
            return self.text(alias)
        return sql.SQL("json_build_array({})::text").format(sql.SQL(", ").join(columns))

    def among(self, alias: str, names: Sequence[str]) -> sql.Composable:
        """Return the condition that the key in the table `alias` is in the parameter ``keys``.

        Of one column ``"target"."fulltext_id" = any(%(keys)s::text[]::bigint[])``, of two
        ``("target"."a", "target"."b") in (select … from unnest(%(keys)s::text[]) as listed …)``.
        """
        if len(self.columns) > 1:
            return self.looked_up(alias, names)
        return sql.SQL("{} = any(%(keys)s::text[]::{}[])").format(
            self.of(alias, names), self._type(0)
        )

    def looked_up(self, alias: str, names: Sequence[str]) -> sql.Composable:
        """Return the same condition for a partitioned table, of which each key is in one part.

        PostgreSQL looks each of a list of rows up in its own part; of an array, all in each.
        """
        return sql.SQL("({}) in (select {} from unnest(%(keys)s::text[]) as listed (key))").format(
            self.listed(alias, names),
            sql.SQL(", ").join(self.values(sql.SQL("listed.key"))),
        )

    def present(self, alias: str) -> sql.Composable:
        """Return the condition that no column of the key is null in the table `alias`.

        Say ``"source"."a" is not null and "source"."b" is not null``.
        """
        return sql.SQL(" and ").join(
            sql.SQL("{} is not null").format(column) for column in _identifiers(alias, self.names)
        )

    def _type(self, position: int) -> sql.Composable:
        # One of KEY_TYPES' values, never a user's text.
        return sql.SQL(self.columns[position].type)


def _identifiers(alias: str, names: Sequence[str]) -> list[sql.Composable]:
    return [sql.Identifier(alias, name) for name in names]


def _row(values: Sequence[sql.Composable]) -> sql.Composable:
    if len(values) == 1:
        return values[0]
    return sql.SQL("row({})").format(sql.SQL(", ").join(values))
