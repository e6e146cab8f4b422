"""Dead letters: read them, and put them back into the queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg.rows import dict_row

from pgqueue_embed.claims import add_items
from pgqueue_embed.connect import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.history import Batch, record_batch
from pgqueue_embed.settings import Pipeline

# The records stay locked while a slice commits, and workers with the same records wait.
SLICE_RECORDS = 10_000

NEWEST = """
select *
from pgembed.dead_letters
where pipeline = %s
order by dead_at desc, key
limit %s
"""


def read_failures(
    connection: Connection, pipeline: Pipeline, *, limit: int
) -> list[dict[str, Any]]:
    """Return up to `limit` rows of pgembed.dead_letters by column name, the newest first."""
    if limit < 1:
        raise UsageError(f"--limit {limit}: give at least 1")
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(NEWEST, (pipeline.name, limit)).fetchall()


def count_failures(connection: Connection, pipeline: Pipeline) -> int:
    """Return how many dead letters the pipeline has."""
    (count,) = connection.execute(
        "select count(*) from pgembed.records where pipeline_id = %s and dead_at is not null",
        (pipeline.id,),
    ).fetchone() or (0,)
    return int(count)


def retry(
    connection: Connection,
    pipeline: Pipeline,
    keys: Sequence[str] = (),
    *,
    slice_records: int = SLICE_RECORDS,
) -> int:
    """Queue the dead letters `keys`, or all of them, with their attempts forgotten.

    Returns how many. Each slice is a commit of its own. Raises UsageError, with nothing done, if
    one of `keys` is no dead letter.
    """
    if keys:
        _check_dead(connection, pipeline, keys)
    retried = 0
    last_key = ""
    while slice_keys := _next_slice(connection, pipeline, keys, last_key, slice_records):
        retried += _retry_slice(connection, pipeline, slice_keys)
        last_key = slice_keys[-1]
    return retried


def _check_dead(connection: Connection, pipeline: Pipeline, keys: Sequence[str]) -> None:
    rows = connection.execute(
        "select key from pgembed.records"
        " where pipeline_id = %s and key = any(%s) and dead_at is not null",
        (pipeline.id, list(keys)),
    )
    missing = sorted(set(keys) - {key for (key,) in rows})
    if missing:
        raise UsageError(
            f"{pipeline.name} has no dead letter '{missing[0]}', so nothing was put back;"
            f" they are listed by: pgembed failures {pipeline.name}"
        )


# Behind the last key: what dies again meanwhile is not put back twice.
NEXT_SLICE = """
select key
from pgembed.records
where pipeline_id = %(pipeline_id)s
    and dead_at is not null
    and key > %(last_key)s
    and (%(keys)s::text[] is null or key = any(%(keys)s))
order by key
limit %(limit)s
"""


def _next_slice(
    connection: Connection, pipeline: Pipeline, keys: Sequence[str], last_key: str, limit: int
) -> list[str]:
    values = {
        "pipeline_id": pipeline.id,
        "last_key": last_key,
        "keys": list(keys) or None,
        "limit": limit,
    }
    return [key for (key,) in connection.execute(NEXT_SLICE, values)]


# Locked in bytewise key order, as a worker does before it writes: the two cannot deadlock.
TAKE_BACK = """
with locked as materialized (
    select key
    from pgembed.records
    where pipeline_id = %(pipeline_id)s and key = any(%(keys)s) and dead_at is not null
    order by key
    for update
)
update pgembed.records
set state = null,
    generation = null,
    document_hash = null,
    attempts = 0,
    failed_hash = null,
    last_error = null,
    dead_at = null
from locked
where records.pipeline_id = %(pipeline_id)s and records.key = locked.key
returning records.key
"""


def _retry_slice(connection: Connection, pipeline: Pipeline, keys: Sequence[str]) -> int:
    with connection.transaction():
        connection.execute("set transaction isolation level read committed")
        values = {"pipeline_id": pipeline.id, "keys": list(keys)}
        taken = [key for (key,) in connection.execute(TAKE_BACK, values)]
        if taken:
            # Not in the key order of bulk loading, so with the priority of changes.
            add_items(connection, pipeline.id, sorted(taken, key=str.encode), priority=0)
            # The records leave the state dead and are counted in the queue from now on.
            record_batch(connection, pipeline.id, None, Batch(dead=-len(taken)))
    return len(taken)
