"""The history of commits, from which progress and rates are summed."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from psycopg import sql

from pgqueue_embed.db.session import Connection


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What one commit did.

    `embedded`, `empty` and `dead` are signed changes of the number of records in that state.
    """

    records: int = 0
    embedded: int = 0
    empty: int = 0
    dead: int = 0
    unchanged: int = 0
    failed: int = 0
    chunks: int = 0
    tokens: int = 0
    unknown_tokens: int = 0
    cache_hits: int = 0
    reused: int = 0
    fp32_chunks: int = 0
    read_seconds: float = 0.0
    chunk_seconds: float = 0.0
    embed_seconds: float = 0.0
    write_seconds: float = 0.0
    lock_seconds: float = 0.0


def record_commit(
    connection: Connection, pipeline_id: int, worker_id: int | None, commit: Commit
) -> None:
    """Insert one row of pgembed.batches, in the transaction that did what it says."""
    values = {"pipeline_id": pipeline_id, "worker_id": worker_id, **asdict(commit)}
    query = sql.SQL("insert into pgembed.batches ({}) values ({})").format(
        sql.SQL(", ").join(map(sql.Identifier, values)),
        sql.SQL(", ").join(map(sql.Placeholder, values)),
    )
    connection.execute(query, values)


# One statement, so that no row is summed and kept, or deleted and not summed; HAVING, so that
# nothing old makes no row. Whole minutes, so that each has one row of pgembed.minutes.
ROLL_UP = """
with old as (
    delete from pgembed.batches
    where pipeline_id = %(pipeline_id)s
        and committed_at < date_trunc('minute', clock_timestamp()) - interval '1 hour'
    returning *
),
outlived as (
    delete from pgembed.minutes
    where pipeline_id = %(pipeline_id)s
        and minute < clock_timestamp() - interval '1 day'
),
of_today as (
    insert into pgembed.minutes
        (pipeline_id, minute, commits, records, failed, dead, chunks, tokens, read_seconds,
        chunk_seconds, embed_seconds, write_seconds, lock_seconds)
    select
        %(pipeline_id)s, date_trunc('minute', committed_at), count(*), sum(records), sum(failed),
        sum(dead), sum(chunks), sum(tokens), sum(read_seconds), sum(chunk_seconds),
        sum(embed_seconds), sum(write_seconds), sum(lock_seconds)
    from old
    where committed_at > clock_timestamp() - interval '1 day' and not rolled_up
    group by date_trunc('minute', committed_at)
)
insert into pgembed.batches
    (pipeline_id, committed_at, records, embedded, empty, dead, unchanged, failed, chunks,
    tokens, unknown_tokens, cache_hits, reused, fp32_chunks, read_seconds, chunk_seconds,
    embed_seconds, write_seconds, lock_seconds, rolled_up)
select
    %(pipeline_id)s, max(committed_at), sum(records), sum(embedded), sum(empty), sum(dead),
    sum(unchanged), sum(failed), sum(chunks), sum(tokens), sum(unknown_tokens), sum(cache_hits),
    sum(reused), sum(fp32_chunks), sum(read_seconds), sum(chunk_seconds), sum(embed_seconds),
    sum(write_seconds), sum(lock_seconds), true
from old
having count(*) > 0
"""

# Below this many old rows a roll-up would only trade one row for another.
WORTH_ROLLING_UP = """
select count(*) > 500
from (
    select 1
    from pgembed.batches
    where pipeline_id = %(pipeline_id)s
        and committed_at < clock_timestamp() - interval '1 hour'
    limit 501
) as old
"""


def roll_up(connection: Connection, pipeline_id: int) -> bool:
    """Fold the rows older than an hour into one, if there are many; returns whether it did.

    What they were minute by minute is kept for a day.
    """
    values = {"pipeline_id": pipeline_id}
    worth = connection.value(WORTH_ROLLING_UP, values)
    if worth:
        with connection.transaction():
            connection.execute(ROLL_UP, values)
    return bool(worth)
