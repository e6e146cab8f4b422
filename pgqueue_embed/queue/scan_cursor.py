"""The cursor of a scan: a row that is the turn of one machine among those that enqueue."""

from __future__ import annotations

from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import PipelineReplaced, UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline

OPEN = """
insert into pgembed.scans (pipeline_id, selection)
select id, %(selection)s
from pgembed.pipelines
where id = %(pipeline_id)s
for key share
on conflict (pipeline_id) do update
set selection = excluded.selection,
    last_key = null,
    queued = 0,
    finished = false,
    started_at = clock_timestamp()
where scans.finished or scans.selection <> excluded.selection
"""

# FOR NO KEY UPDATE holds the turn until the slice commits.
TURN = """
select selection, finished, last_key, queued
from pgembed.scans
where pipeline_id = %s
for no key update
"""

ADVANCE = """
update pgembed.scans
set last_key = coalesce(%(last_key)s, last_key),
    queued = queued + %(queued)s,
    finished = %(finished)s
where pipeline_id = %(pipeline_id)s
"""


def open_scan(connection: Connection, pipeline: Pipeline, selection: str) -> bool:
    """Start a scan, or join an unfinished one of the same `selection`; returns whether joined."""
    values = {"pipeline_id": pipeline.id, "selection": selection}
    with connection.transaction():
        # The turn before the pipeline, as in a switch of generations, which has its turn first.
        connection.execute(TURN, (pipeline.id,))
        return connection.execute(OPEN, values).rowcount == 0


def is_scanning(connection: Connection, pipeline: Pipeline) -> bool:
    """Return whether a scan has been begun that is not finished yet."""
    query = "select exists (select from pgembed.scans where pipeline_id = %s and not finished)"
    return bool(connection.value(query, (pipeline.id,)))


def take_scan_turn(
    connection: Connection, pipeline: Pipeline, selection: str
) -> tuple[str | None, int] | None:
    """Return (last key, records queued) of the scan, or None when another machine finished it.

    The turn lasts as long as the open transaction. Raises PipelineReplaced if there is no scan any
    more, UsageError if one of another `selection` has taken its place.
    """
    row = connection.execute(TURN, (pipeline.id,)).fetchone()
    if row is None:
        raise PipelineReplaced(
            f"{pipeline.name} was replaced by its next generation, or dropped, just now; enqueue"
            " again"
        )
    if row[0] != selection:
        raise UsageError(
            f"another enqueue of pipeline '{pipeline.name}' with other options has taken over;"
            " what is queued stays queued, run this one again after it"
        )
    _, finished, last_key, queued = row
    return None if finished else (last_key, queued)


def advance_scan(
    connection: Connection,
    pipeline: Pipeline,
    last_key: str | None,
    queued: int,
    *,
    finished: bool,
) -> None:
    """Note, in the transaction of a turn, how far it got; None for `last_key` if no further."""
    values = {"last_key": last_key, "queued": queued, "finished": finished}
    connection.execute(ADVANCE, {**values, "pipeline_id": pipeline.id})
