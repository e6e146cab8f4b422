"""The views beside a table of chunks: `<table>_view`, and `<table>_chunks` if it has no texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from psycopg import sql

from pgqueue_embed.db.names import Table, with_suffix
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.columns import raw
from pgqueue_embed.pipeline.key import Key
from pgqueue_embed.target.chunk_text import ChunkText

# Who reads the view needs rights on both tables then; older servers ask for the view's owner's.
INVOKER_VERSION = 150_000
AS_INVOKER = "with (security_invoker = true)"


# Whether a view reads a table. What a person has given the name reads something else.
READS = """
select exists (
    select
    from pg_class
    join pg_rewrite on ev_class = pg_class.oid
    join pg_depend on classid = 'pg_rewrite'::regclass and objid = pg_rewrite.oid
    where pg_class.oid = to_regclass(%s)
        and relkind = 'v'
        and refclassid = 'pg_class'::regclass
        and refobjid = to_regclass(%s)
)
"""


@dataclass(frozen=True, kw_only=True)
class View(ABC):
    """A view of the table `target` and of `source`, called after the first.

    It names the columns that there are when it is made: PostgreSQL then refuses to drop them.
    """

    target: Table
    source: Table

    @property
    @abstractmethod
    def table(self) -> Table:
        """The name of the view."""

    @property
    @abstractmethod
    def option(self) -> str:
        """What the command line calls it."""

    @property
    @abstractmethod
    def comment(self) -> str:
        """What it shows."""

    @abstractmethod
    def query(self, connection: Connection) -> sql.Composable:
        """Return what it selects."""

    def is_there(self, connection: Connection) -> bool:
        """Return whether anything has the view's name."""
        return connection.has_relation(self.table)

    def is_made(self, connection: Connection) -> bool:
        """Return whether the view is there, and not something else that has its name."""
        return self._reads(connection, self.target)

    def reads_source(self, connection: Connection) -> bool:
        """Return whether it reads the table that has the source's name."""
        return self._reads(connection, self.source)

    def _reads(self, connection: Connection, table: Table) -> bool:
        return bool(connection.value(READS, (self.table.quoted, table.quoted)))

    def check(self, connection: Connection) -> None:
        """Raise UsageError if something has the view's name."""
        if self.is_there(connection):
            raise UsageError(
                f"{self.option}: {self.table} exists already; rename it, or leave the option out"
            )

    def create(self, connection: Connection) -> None:
        """Make the view, or make it anew if it has the same columns as before."""
        create = sql.SQL("create or replace view {view} {options} as {query}").format(
            view=self.table.identifier,
            options=sql.SQL(AS_INVOKER if _knows_invoker(connection) else ""),
            query=self.query(connection),
        )
        connection.execute(create)
        self.describe(connection)

    def describe(self, connection: Connection) -> None:
        """Say with the view what it shows."""
        describe = sql.SQL("comment on view {} is {}")
        connection.execute(describe.format(self.table.identifier, sql.Literal(self.comment)))

    def drop(self, connection: Connection) -> None:
        """Remove the view, if it is there."""
        if self.is_made(connection):
            connection.execute(sql.SQL("drop view {}").format(self.table.identifier))


JOINED = """
select {columns}
from {source} as source
join {rows} as target on {target_key} = {source_key}
"""


@dataclass(frozen=True, kw_only=True)
class ChunkView(View):
    """All columns of the source that are called as none of the chunks' is, and the chunks'.

    A table without texts has these by `text`.
    """

    key: Key
    target_key: tuple[str, ...]
    text: ChunkText | None

    @property
    def table(self) -> Table:
        return Table(schema=self.target.schema, name=with_suffix(self.target.name, "_view"))

    @property
    def option(self) -> str:
        return "--view"

    @property
    def comment(self) -> str:
        return f"The records of {self.source} with their chunks and vectors in {self.target}."

    def query(self, connection: Connection) -> sql.Composable:
        rows: sql.Composable = self.target.identifier
        chunks = _columns(connection, self.target)
        if self.text is not None:
            rows = sql.SQL(raw(self.text.rows(self.target)))
            chunks.append(self.text.columns.text_chunk)
        columns = [
            *(("source", name) for name in _columns(connection, self.source) if name not in chunks),
            *(("target", name) for name in chunks),
        ]
        return sql.SQL(JOINED).format(
            columns=sql.SQL(", ").join(sql.Identifier(*column) for column in columns),
            source=self.source.identifier,
            rows=rows,
            source_key=self.key.of("source"),
            target_key=self.key.of("target", self.target_key),
        )


@dataclass(frozen=True, kw_only=True)
class TextView(View):
    """All columns of a table of chunks that stores no texts, and these by `text`."""

    text: ChunkText

    @property
    def table(self) -> Table:
        return Table(schema=self.target.schema, name=with_suffix(self.target.name, "_chunks"))

    @property
    def option(self) -> str:
        return "--no-text"

    @property
    def comment(self) -> str:
        return (
            f"The chunks and vectors in {self.target}, with the texts out of {self.text.source};"
            " null where the source has another text in that place by now."
        )

    def query(self, connection: Connection) -> sql.Composable:
        del connection
        return sql.SQL("select * from {} as chunk").format(
            sql.SQL(raw(self.text.rows(self.target)))
        )


def _knows_invoker(connection: Connection) -> bool:
    return connection.info.server_version >= INVOKER_VERSION


def _columns(connection: Connection, table: Table) -> list[str]:
    rows = connection.execute(
        "select attname from pg_attribute"
        " where attrelid = %s::regclass and attnum > 0 and not attisdropped order by attnum",
        (table.quoted,),
    )
    return [name for (name,) in rows]
