"""Passages of documents for people to read, with the rights of whoever looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from pgqueue_embed.db.faults import on_users_tables
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.source.read import source_names
from pgqueue_embed.source.trust import trusting


@dataclass(frozen=True, kw_only=True)
class WantedPassage:
    """Which passage to read: so many `characters` of the document of `key`, from `start` on."""

    key: str
    start: int = 0
    characters: int


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A part of a document: `text` begins at character `start` of `length`."""

    text: str
    start: int
    length: int


# Who reads for people sees what policies let him see, as in a search.
WHAT_ONE_MAY_SEE = "set local row_security = on"

PASSAGES = """
with listed as (
    select key, start, characters, position
    from unnest(%(keys)s::text[], %(starts)s::integer[], %(characters)s::integer[])
        with ordinality as listed (key, start, characters, position)
)
select
    listed.position,
    substr(document, start + 1, characters),
    length(document)
from listed
cross join lateral (
    select coalesce({document}, '') as document
    from {source} as source
    where {source_key} = {listed_key} and {key_is_among_keys}
    limit 1
) as found
"""


def read_passages(
    connection: Connection, pipeline: Pipeline, wanted: Sequence[WantedPassage]
) -> list[Passage | None]:
    """Return the passages that are wanted, None for a record that the source has not.

    Raises PipelineFault for a source that cannot be read, RoleFault for the want of a right.
    """
    query = sql.SQL(PASSAGES).format(**source_names(pipeline))
    values = {
        "keys": [each.key for each in wanted],
        "starts": [max(each.start, 0) for each in wanted],
        "characters": [each.characters for each in wanted],
    }
    with (
        trusting(connection, pipeline.spec, searching=True, reads_source=True),
        on_users_tables(connection, f"reading {pipeline.source}"),
        connection.transaction(),
    ):
        connection.execute(WHAT_ONE_MAY_SEE)
        rows = connection.execute(query, values).fetchall()
    found = {position: (text, length) for position, text, length in rows}
    return [_passage(each, found.get(place)) for place, each in enumerate(wanted, start=1)]


def _passage(wanted: WantedPassage, found: tuple[str, int] | None) -> Passage | None:
    if found is None:
        return None
    text, length = found
    return Passage(text=text, start=max(wanted.start, 0), length=length)
