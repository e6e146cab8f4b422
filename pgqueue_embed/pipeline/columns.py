"""A column of the source table, and its values as text that no setting of a session changes."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from pgqueue_embed.db.session import TEXT_SETTINGS

# The type beneath a domain, or beneath a domain over domains: what pgembed.base_type says, for
# whoever may not use that schema (yet).
BASE_TYPE = """(
    with recursive beneath (type, next) as (
        select pg_type.oid, typbasetype from pg_type where pg_type.oid = atttypid
        union all
        select pg_type.oid, typbasetype from beneath join pg_type on pg_type.oid = beneath.next
    )
    select type from beneath where next = 0
)"""

# Of a function: values are spelled as they are in our sessions.
OF_A_FUNCTION = sql.SQL("\n").join(
    sql.SQL("set {} = {}").format(sql.SQL(name), value) for name, value in TEXT_SETTINGS.items()
)

# JSON writes these by ISO 8601 whatever DateStyle says.
ISO_TYPES = ("date", "timestamp without time zone")


@dataclass(frozen=True, kw_only=True)
class Column:
    """Name and type of a column; of a domain, the type beneath it."""

    name: str
    type: str

    def of(self, alias: str) -> sql.Composable:
        """Return the column of the table that a statement calls `alias`."""
        return sql.Identifier(alias, self.name)

    def text_of(self, alias: str) -> sql.Composable:
        """Return the column as text: times as ISO 8601 in UTC, lists with commas."""
        if self.type in ISO_TYPES:
            pattern = "to_json({}) #>> '{{}}'"
        elif self.type == "timestamp with time zone":
            pattern = "to_json({} at time zone 'UTC') #>> '{{}}'"
        elif self.type.endswith("[]"):
            pattern = "array_to_string({}, ', ')"
        else:
            pattern = "{}::text"
        return sql.SQL(pattern).format(self.of(alias))

    def exact_text_of(self, alias: str) -> sql.Composable:
        """Return the column as text that no other value has: lists as PostgreSQL writes them."""
        if self.type.endswith("[]"):
            return sql.SQL("{}::text").format(self.of(alias))
        return self.text_of(alias)

    @property
    def unlimited_type(self) -> str:
        """The type for a column that takes every value of this one, however long."""
        return "bpchar" if self.type == "character" else self.type


def raw(composed: sql.Composable) -> str:
    """Return SQL that was made for placeholders of psycopg as PostgreSQL reads it."""
    return composed.as_string(None).replace("%%", "%")


def literal(text: str) -> sql.Composable:
    """Return `text` as a constant of a statement that is executed with parameters."""
    return sql.Literal(text.replace("%", "%%"))
