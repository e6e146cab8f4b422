"""Adoptions: how far the adoption of a table is, and what was found in it.

While one is unfinished, no other session may scan for records to queue: it would queue what
is about to be adopted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from psycopg import sql

from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.untrusted.shell import command


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many records met each fate.

    `adopted` have right chunks, `chunks` in all, `empty` no text; `settled` had a ledger state
    already. All others were queued: `missing` from the table, with `wrong_vectors`, of whose text
    `text_differs`, was `cut_off` by the model, or that are `gone` from the source.
    """

    adopted: int = 0
    chunks: int = 0
    empty: int = 0
    settled: int = 0
    missing: int = 0
    wrong_vectors: int = 0
    text_differs: int = 0
    cut_off: int = 0
    gone: int = 0

    @property
    def queued(self) -> int:
        """How many records were queued."""
        return self.missing + self.wrong_vectors + self.text_differs + self.cut_off + self.gone

    @property
    def records(self) -> int:
        """How many records were looked at."""
        return self.adopted + self.empty + self.settled + self.queued

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            **{each.name: getattr(self, each.name) + getattr(other, each.name) for each in FIELDS}
        )


FIELDS = fields(Counts)


@dataclass(frozen=True, kw_only=True)
class Adoption:
    """One row of pgembed.adoptions: `walking` is source, target or finished, up to `last_key`.

    `doubtful` are keys of records whose vectors the sample found to be of another text or model.
    """

    walking: str
    last_key: str | None
    doubtful: tuple[str, ...]
    counts: Counts

    @property
    def is_finished(self) -> bool:
        """Whether every record has been looked at."""
        return self.walking == "finished"


def begin_adoption(connection: Connection, pipeline: Pipeline, doubtful: Sequence[str]) -> None:
    """Put the cursor at the beginning of the source."""
    connection.execute(
        "insert into pgembed.adoptions (pipeline_id, doubtful) values (%s, %s)",
        (pipeline.id, list(doubtful)),
    )


COLUMNS = sql.SQL(", ").join(sql.Identifier(each.name) for each in FIELDS)


def read_adoption(connection: Connection, pipeline: Pipeline) -> Adoption | None:
    """Return how far the adoption of `pipeline` is, or None for one that was created."""
    query = sql.SQL(
        "select walking, last_key, doubtful, {} from pgembed.adoptions where pipeline_id = %s"
    )
    row = connection.execute(query.format(COLUMNS), (pipeline.id,)).fetchone()
    if row is None:
        return None
    walking, last_key, doubtful, *counts = row
    return Adoption(
        walking=walking,
        last_key=last_key,
        doubtful=tuple(doubtful),
        counts=Counts(**dict(zip((each.name for each in FIELDS), counts, strict=True))),
    )


# Two that adopt at once take turns on this row.
TURN = """
select
from pgembed.adoptions
where pipeline_id = %s and walking = %s and last_key is not distinct from %s
for no key update
"""


def take_adoption_turn(connection: Connection, pipeline: Pipeline, adoption: Adoption) -> bool:
    """Lock the cursor until the transaction ends; returns whether it still is where it was."""
    values = (pipeline.id, adoption.walking, adoption.last_key)
    return connection.execute(TURN, values).fetchone() is not None


def advance_adoption(
    connection: Connection,
    pipeline: Pipeline,
    *,
    walking: str,
    last_key: str | None,
    counts: Counts,
) -> None:
    """Move the cursor, and add what was found on the way."""
    added = sql.SQL(", ").join(
        sql.SQL("{0} = {0} + {1}").format(sql.Identifier(each.name), sql.Placeholder(each.name))
        for each in FIELDS
    )
    query = sql.SQL(
        """
        update pgembed.adoptions
        set walking = %(walking)s,
            last_key = %(last_key)s,
            {added},
            finished_at = case when %(walking)s = 'finished' then clock_timestamp() end
        where pipeline_id = %(pipeline_id)s
        """
    )
    values: dict[str, Any] = {each.name: getattr(counts, each.name) for each in FIELDS}
    place = {"pipeline_id": pipeline.id, "walking": walking, "last_key": last_key}
    connection.execute(query.format(added=added), {**values, **place})


def check_adopted(connection: Connection, pipeline: Pipeline) -> None:
    """Raise UsageError while the table of `pipeline` is being adopted."""
    adoption = read_adoption(connection, pipeline)
    if adoption is not None and not adoption.is_finished:
        raise UsageError(
            f"{pipeline.target} is not adopted to its end yet; go on with:"
            f" {command('adopt', pipeline.name)}"
        )
