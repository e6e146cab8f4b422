"""The rights that a role lacks to look or to search, as the GRANTs that give them."""

from __future__ import annotations

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.vector_search.rights import OWN_TABLES, missing_grants

VIEWS = (
    *("progress", "worker_status", "in_flight", "dead_letters", "failure_groups", "events"),
    *("history", "recent_history", "vector_indexes", "settings"),
)

TABLES = """
select distinct listed.schema, listed.name
from pgembed.settings
cross join lateral (
    values (source_schema, source_table), (target_schema, target_table)
) as listed (schema, name)
where pipeline = %s
"""


def lacking_to_look(connection: Connection) -> list[str]:
    """Return the GRANTs without which the views cannot be read."""
    return missing_grants(connection, [Table(schema="pgembed", name=view) for view in VIEWS])


def lacking_to_search(connection: Connection, name: str) -> list[str]:
    """Return the GRANTs without which pipeline `name` cannot be searched and shown."""
    tables = [
        Table(schema=schema, name=table)
        for schema, table in connection.execute(TABLES, (name,)).fetchall()
    ]
    return missing_grants(connection, [*OWN_TABLES, *tables])
