"""The rights that a role lacks to look or to search, as the GRANTs that give them."""

from __future__ import annotations

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.document import Recipe
from pgqueue_embed.vector_search.rights import OWN_TABLES, Readable, missing_grants

VIEWS = (
    *("progress", "worker_status", "in_flight", "dead_letters", "failure_groups", "events"),
    *("history", "recent_history", "vector_indexes", "settings"),
)

# Of the documents, passages are shown around what was found.
PLACES = """
select
    source_schema, source_table, key_columns, text_fields, template, target_schema, target_table
from pgembed.settings
where pipeline = %s
"""


def lacking_to_look(connection: Connection) -> list[str]:
    """Return the GRANTs without which the views cannot be read."""
    views = [Readable(Table(schema="pgembed", name=view)) for view in VIEWS]
    return missing_grants(connection, views)


def lacking_to_search(connection: Connection, name: str) -> list[str]:
    """Return the GRANTs without which pipeline `name` cannot be searched and shown."""
    tables = [
        each
        for row in connection.execute(PLACES, (name,)).fetchall()
        for each in _source_and_target(*row)
    ]
    return missing_grants(connection, [*OWN_TABLES, *tables])


def _source_and_target(
    source_schema: str,
    source_table: str,
    key: list[str],
    text_fields: list[str],
    template: str | None,
    target_schema: str,
    target_table: str,
) -> tuple[Readable, Readable]:
    recipe = Recipe(text_fields=tuple(text_fields), template=template)
    columns = (*key, *recipe.document_names())
    return (
        Readable(Table(schema=source_schema, name=source_table), columns),
        Readable(Table(schema=target_schema, name=target_table)),
    )
