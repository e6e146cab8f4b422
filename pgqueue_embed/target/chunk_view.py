"""A view of a table of chunks joined with its source, beside the table: `<table>_view`."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from pgqueue_embed.db.names import Table, with_suffix
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.key import Key

VIEW = """
create or replace view {view} {options} as
select {columns}
from {source} as source
join {target} as target on {target_key} = {source_key}
"""

# Who reads the view needs rights on both tables then; older servers ask for the view's owner's.
INVOKER_VERSION = 150_000
AS_INVOKER = "with (security_invoker = true)"


@dataclass(frozen=True, kw_only=True)
class ChunkView:
    """All columns of the source that are called as none of the chunks' is, and the chunks'.

    It names the columns that there are when it is made: PostgreSQL then refuses to drop them.
    """

    source: Table
    target: Table
    key: Key
    target_key: tuple[str, ...]

    @property
    def table(self) -> Table:
        """The name of the view."""
        return Table(schema=self.target.schema, name=with_suffix(self.target.name, "_view"))

    def is_there(self, connection: Connection) -> bool:
        """Return whether anything has the view's name."""
        found = connection.value("select to_regclass(%s) is not null", (self.table.quoted,))
        return bool(found)

    def check(self, connection: Connection) -> None:
        """Raise UsageError if something has the view's name."""
        if self.is_there(connection):
            raise UsageError(
                f"--view: {self.table} exists already; rename it, or leave the option out"
            )

    def create(self, connection: Connection) -> None:
        """Make the view, or make it anew if it has the same columns as before."""
        chunks = _columns(connection, self.target)
        columns = [
            *(("source", name) for name in _columns(connection, self.source) if name not in chunks),
            *(("target", name) for name in chunks),
        ]
        query = sql.SQL(VIEW).format(
            view=self.table.identifier,
            options=sql.SQL(AS_INVOKER if _knows_invoker(connection) else ""),
            columns=sql.SQL(", ").join(sql.Identifier(*column) for column in columns),
            source=self.source.identifier,
            target=self.target.identifier,
            source_key=self.key.of("source"),
            target_key=self.key.of("target", self.target_key),
        )
        connection.execute(query)
        comment = f"The records of {self.source} with their chunks and vectors in {self.target}."
        describe = sql.SQL("comment on view {} is {}")
        connection.execute(describe.format(self.table.identifier, sql.Literal(comment)))

    def drop(self, connection: Connection) -> None:
        """Remove the view, if it is there."""
        connection.execute(sql.SQL("drop view if exists {}").format(self.table.identifier))


def _knows_invoker(connection: Connection) -> bool:
    return connection.info.server_version >= INVOKER_VERSION


def _columns(connection: Connection, table: Table) -> list[str]:
    rows = connection.execute(
        "select attname from pg_attribute"
        " where attrelid = %s::regclass and attnum > 0 and not attisdropped order by attnum",
        (table.quoted,),
    )
    return [name for (name,) in rows]
