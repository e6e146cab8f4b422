"""Dead letters: read them, and put them back into the queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg.rows import dict_row

from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.option import check_count
from pgqueue_embed.pipeline.pipeline import Pipeline

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
    check_count("--limit", limit)
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(NEWEST, (pipeline.name, limit)).fetchall()


def count_failures(connection: Connection, pipeline: Pipeline) -> int:
    """Return how many dead letters the pipeline has."""
    count = connection.value(
        "select count(*) from pgembed.records where pipeline_id = %s and dead_at is not null",
        (pipeline.id,),
    )
    return int(count)


def retry(
    connection: Connection,
    pipeline: Pipeline,
    keys: Sequence[str] = (),
    *,
    slice_records: int = SLICE_RECORDS,
) -> int:
    """Queue the dead letters `keys`, or all of them, with their attempts forgotten.

    Returns how many. Of all of them, each slice is a commit of its own. Raises UsageError, with
    nothing done, if one of `keys` is no dead letter.
    """
    if keys:
        return _retry_keys(connection, pipeline, keys)
    retried = 0
    slice_keys, last_key = _next_slice(connection, pipeline, "", slice_records)
    while slice_keys:
        retried += _count(connection, PUT_BACK, (slice_keys, pipeline.id))
        slice_keys, last_key = _next_slice(connection, pipeline, last_key, slice_records)
    return retried


PUT_BACK = "select pgembed.put_back(id, %s) from pgembed.pipelines where id = %s"

# By its id: a name may have been changed since the pipeline was loaded.
RETRY_KEYS = "select pgembed.retry(name, %s::text[]) from pgembed.pipelines where id = %s"


def _retry_keys(connection: Connection, pipeline: Pipeline, keys: Sequence[str]) -> int:
    try:
        return _count(connection, RETRY_KEYS, (list(keys), pipeline.id))
    except psycopg.errors.InvalidParameterValue as error:
        raise UsageError(f"{error.diag.message_primary}; {error.diag.message_hint}") from None


def _count(connection: Connection, query: str, values: tuple[list[str], int]) -> int:
    with connection.transaction():
        retried = connection.value(query, values)
    return int(retried)


# Behind the last key: what dies again meanwhile is not put back twice.
NEXT_SLICE = """
select coalesce(long_key, key), key
from pgembed.records
where pipeline_id = %s and dead_at is not null and key > %s
order by key
limit %s
"""


def _next_slice(
    connection: Connection, pipeline: Pipeline, last_key: str, limit: int
) -> tuple[list[str], str]:
    """Return the keys of some dead letters, and the last of them as it is in the ledger."""
    rows = connection.execute(NEXT_SLICE, (pipeline.id, last_key, limit)).fetchall()
    return [key for key, _ in rows], rows[-1][1] if rows else last_key
