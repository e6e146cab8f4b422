"""The vector extension: its schema and version."""

from __future__ import annotations

from pgqueue_embed.db.session import Connection


def vector_extension(connection: Connection) -> tuple[str, str] | None:
    """Return (schema, version) of the installed vector extension, or None."""
    row = connection.execute(
        """
        select nspname, extversion
        from pg_extension
        join pg_namespace on pg_namespace.oid = extnamespace
        where extname = 'vector'
        """
    ).fetchone()
    return (row[0], row[1]) if row else None
