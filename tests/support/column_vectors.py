"""Vectors in a column of the source."""

from __future__ import annotations

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from tests.support import working
from tests.support.columns import whole_chunker

COLUMN = """
select format_type(atttypid, atttypmod), attnotnull, col_description(attrelid, attnum)
from pg_attribute
where attrelid = %s::regclass and attname = %s and not attisdropped
"""


def embed(connection: Connection, session: Session, pipeline: Pipeline) -> None:
    """Queue what is to be embedded, and embed it."""
    working.embed(connection, session, pipeline, chunker=whole_chunker())


def column(connection: Connection, table: str, name: str) -> tuple[str, bool, str] | None:
    return connection.execute(COLUMN, (table, name)).fetchone()


def versions(connection: Connection) -> dict[int, tuple[str, bool]]:
    """Return by id the version of each row, and whether it has a vector."""
    rows = connection.execute("select id, ctid::text, embedding is not null from reports")
    return {id_: (version, embedded) for id_, version, embedded in rows}
