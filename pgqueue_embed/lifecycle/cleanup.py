"""Removes the remains of the old generation after a switch, or later."""

from __future__ import annotations

from psycopg import sql

from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.housekeeping import move_work_to_successors

# In portions, so that no transaction is long.
FORGET = """
delete from pgembed.records
where ctid = any(array(
    select ctid from pgembed.records where pipeline_id = %s limit 50000
))
"""


def finish(connection: Connection, pipeline: Pipeline) -> None:
    """Remove what is left of the generation that `pipeline` has replaced; nothing twice.

    Work that was queued for it in the very moment of the switch is given to its successor.
    """
    old_id = pipeline.successor_of
    if old_id is None or _is_there(connection, old_id):
        return
    move_work_to_successors(connection)
    for table in ("scans", "batches", "minutes", "adoptions"):
        query = sql.SQL("delete from {} where pipeline_id = %s")
        connection.execute(query.format(sql.Identifier("pgembed", table)), (old_id,))
    while connection.execute(FORGET, (old_id,)).rowcount:
        pass


def _is_there(connection: Connection, pipeline_id: int) -> bool:
    query = "select exists (select from pgembed.pipelines where id = %s)"
    there = connection.value(query, (pipeline_id,))
    return bool(there)
