"""Dead letters: read them, and put them back into the queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg.rows import dict_row

from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.canonical_keys import no_key
from pgqueue_embed.pipeline.option import check_count
from pgqueue_embed.pipeline.pipeline import Pipeline

# The records stay locked while a slice commits, and workers with the same records wait.
SLICE_RECORDS = 10_000

# By its number, which is known before the dead letters are looked at: those of a name are joined,
# and would all be read and sorted.
NEWEST = """
select pipeline, key, attempts, last_error, dead_at, error_kind
from pgembed.dead_letters
where pipeline_id = (select pipeline_id from pgembed.settings where pipeline = %(name)s)
    and (%(kind)s::text is null or error_kind = %(kind)s)
order by dead_at desc, key
limit %(limit)s
"""


def read_failures(
    connection: Connection, name: str, *, limit: int, kind: str | None = None
) -> list[dict[str, Any]]:
    """Return up to `limit` rows of pgembed.dead_letters by column name, the newest first.

    Those of the pipeline `name`, and of one `kind` of error, if it is given.
    """
    check_count("--limit", limit)
    values = {"name": name, "kind": kind, "limit": limit}
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(NEWEST, values).fetchall()


GROUPS = """
select *
from pgembed.failure_groups
where pipeline = %s
order by failures desc, error
limit %s
"""


def read_groups(connection: Connection, name: str, *, limit: int) -> list[dict[str, Any]]:
    """Return up to `limit` rows of pgembed.failure_groups by column name, the largest first.

    Those of the pipeline `name`.
    """
    check_count("--limit", limit)
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(GROUPS, (name, limit)).fetchall()


COUNT = """
select count(*)
from pgembed.records
where pipeline_id = %(pipeline_id)s
    and dead_at is not null
    and (%(kind)s::text is null or error_kind = %(kind)s)
"""


def count_failures(connection: Connection, pipeline: Pipeline, kind: str | None = None) -> int:
    """Return how many dead letters the pipeline has, of one `kind` of error if it is given."""
    count = connection.value(COUNT, {"pipeline_id": pipeline.id, "kind": kind})
    return int(count)


KIND_OF = """
select error_kind
from pgembed.pipelines
join pgembed.records on records.pipeline_id = pipelines.id
where pipelines.id = %(pipeline_id)s
    and records.key = pgembed.ledger_key(
        (pgembed.canonical_keys(array[%(key)s], pipelines))[1]
    )
    and records.state = 'dead'
"""


def failure_kind(connection: Connection, pipeline: Pipeline, key: str) -> str:
    """Return what the error of dead letter `key` has in common with others of its kind.

    Raises UsageError if it is no dead letter.
    """
    try:
        row = connection.execute(KIND_OF, {"pipeline_id": pipeline.id, "key": key}).fetchone()
    except psycopg.errors.InvalidParameterValue as error:
        raise no_key(error) from None
    if row is None:
        raise UsageError(f"{pipeline.name} has no dead letter '{key}'; pgembed failures lists them")
    return str(row[0] or "")


def retry(
    connection: Connection,
    pipeline: Pipeline,
    keys: Sequence[str] | None = None,
    *,
    kind: str | None = None,
    slice_records: int = SLICE_RECORDS,
) -> int:
    """Queue the dead letters `keys`, or all of them for None, with their attempts forgotten.

    All are those of one `kind` of error, if it is given. Returns how many. Of all of them, each
    slice is a commit of its own. Raises UsageError, with nothing done, if one of `keys` is no dead
    letter.
    """
    if keys is not None:
        return _retry_keys(connection, pipeline, keys)
    retried = 0
    last_key: str | None = None
    while rows := _next_slice(connection, pipeline, kind, last_key, slice_records):
        retried += _count(connection, PUT_BACK, ([key for key, _ in rows], pipeline.id))
        last_key = rows[-1][1]
    return retried


PUT_BACK = "select pgembed.put_back(id, %s) from pgembed.pipelines where id = %s"

# By its id: a name may have been changed since the pipeline was loaded.
RETRY_KEYS = "select pgembed.retry(name, %s::text[]) from pgembed.pipelines where id = %s"


def _retry_keys(connection: Connection, pipeline: Pipeline, keys: Sequence[str]) -> int:
    try:
        return _count(connection, RETRY_KEYS, (list(keys), pipeline.id))
    except psycopg.errors.InvalidParameterValue as error:
        raise no_key(error) from None


def _count(connection: Connection, query: str, values: tuple[list[str], int]) -> int:
    with connection.transaction():
        retried = connection.value(query, values)
    return int(retried)


# Behind the last key: what dies again meanwhile is not put back twice. By the index of the dead in
# the order of their keys: that by kind, which `=` could use, is in no such order.
NEXT_SLICE = """
select coalesce(long_key, key), key
from pgembed.records
where pipeline_id = %s
    and dead_at is not null
    and (%s::text is null or key > %s)
    and (%s::text is null or error_kind is not distinct from %s)
order by key
limit %s
"""


def _next_slice(
    connection: Connection, pipeline: Pipeline, kind: str | None, last_key: str | None, limit: int
) -> list[tuple[str, str]]:
    """Return the keys of some dead letters, each with what it is in the ledger."""
    values = (pipeline.id, last_key, last_key, kind, kind, limit)
    return connection.execute(NEXT_SLICE, values).fetchall()
