"""The records ledger: the mutex of each record at the write, and what is known of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from psycopg import sql

from pgqueue_embed.db.faults import on_users_tables
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import LeaseLost
from pgqueue_embed.ledger.verdicts import Current, Finding
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.source.ambiguous import hash_of_rows
from pgqueue_embed.source.read import source_names
from pgqueue_embed.untrusted.foreign_text import MOST_STORED_CHARACTERS, printable

# Inserting is the lock. For a row that is there already, DO UPDATE … WHERE false locks it without
# writing a new version; a second worker with the same record waits here until we have committed,
# and its next statement sees what we did.
LOCK = """
insert into pgembed.records (pipeline_id, key, long_key)
select
    %(pipeline_id)s,
    pgembed.ledger_key(key),
    case when pgembed.ledger_key(key) <> key then key end
from unnest(%(keys)s::text[]) as listed (key)
on conflict (pipeline_id, key) do update set key = excluded.key where false
"""


def lock_records(connection: Connection, pipeline: Pipeline, keys: Iterable[str]) -> None:
    """Lock the records of `keys` until the transaction ends, in bytewise order.

    One order for all workers, so that two with common records cannot deadlock.
    """
    ordered = sorted(set(keys), key=str.encode)
    connection.execute(LOCK, {"pipeline_id": pipeline.id, "keys": ordered})


# What stands in the place of a record that cannot be read in time.
UNREAD_RECORDS = """
with listed as (
    select key, true as present, ''::bytea as document_hash
    from unnest(%(keys)s::text[]) as listed (key)
)
"""

# A statement of its own, after the lock: in one statement with it, it would see the old text.
READ_RECORDS = """
with listed as (
    select
        listed.key,
        {source_present} as present,
        {document_hash} as document_hash
    from unnest(%(keys)s::text[]) as listed (key)
    left join {source} as source on {source_key} = {listed_key} and {key_is_among_keys}
)
"""

STANDING = """
select
    listed.key,
    listed.present,
    case when not listed.present then {excluded} else false end,
    case
        when not listed.present
        then exists (select from {target} as target where {target_key} = {listed_key})
        else false
    end,
    listed.document_hash,
    ledger.state,
    ledger.generation,
    ledger.document_hash,
    case
        when ledger.state = 'embedded' and ledger.document_hash = listed.document_hash
        then ledger.chunks = (
            select count(*)
            from {target} as target
            where {target_key} = {listed_key} {and_chunk_is_of_listed}
        )
        else true
    end as chunks_agree,
    ledger.attempts,
    ledger.failed_hash
from listed
cross join lateral (
    select state, generation, document_hash, chunks, attempts, failed_hash
    from pgembed.records
    where pipeline_id = %(pipeline_id)s and records.key = pgembed.ledger_key(listed.key)
    limit 1
) as ledger
where exists (
    select
    from pgembed.pipelines
    where id = %(pipeline_id)s
        and target_schema = %(schema)s
        and target_table = %(table)s
        and target_columns ->> 'embedding' = %(embedding)s
)
"""


def read_current(
    connection: Connection, pipeline: Pipeline, keys: Sequence[str], *, unread: bool = False
) -> dict[str, Current]:
    """Return how each record stands now; to be called with the records locked.

    Those that are `unread` pass for present ones with the hash verdicts.UNREAD. Raises
    PipelineFault when source or target cannot be read, LeaseLost if the pipeline is gone or has
    another target now. The statement has locked the target table before it looks, and a switch of
    generations locks it too: the table is the pipeline's until we commit.
    """
    statement = (UNREAD_RECORDS if unread else READ_RECORDS) + STANDING
    query = sql.SQL(statement).format(**source_names(pipeline))
    values = {
        "pipeline_id": pipeline.id,
        "keys": list(keys),
        "schema": pipeline.target.schema,
        "table": pipeline.target.name,
        "embedding": pipeline.spec.columns.embedding,
    }
    with on_users_tables(connection, f"reading {pipeline.source} again under the records' locks"):
        rows = connection.execute(query, values).fetchall()
    if keys and not rows:
        raise LeaseLost(f"{pipeline.name} was replaced or dropped while its records were embedded")
    of_key: dict[str, list[tuple[Any, ...]]] = {}
    for row in rows:
        of_key.setdefault(row[0], []).append(row)
    return {key: _current(same) for key, same in of_key.items()}


def _current(rows: Sequence[tuple[Any, ...]]) -> Current:
    """Return how a record stands, of which the source has one row, or several by mistake."""
    key, present, excluded, has_chunks, _, *of_ledger = rows[0]
    state, generation, ledger_hash, chunks_agree, attempts, failed_hash = of_ledger
    return Current(
        key=key,
        present=present,
        excluded=excluded,
        has_chunks=has_chunks,
        document_hash=hash_of_rows([row[4] for row in rows]),
        state=state,
        generation=generation,
        ledger_hash=ledger_hash,
        chunks_agree=chunks_agree,
        attempts=attempts,
        failed_hash=failed_hash,
    )


SETTLE = """
update pgembed.records
set state = settled.state,
    generation = %(generation)s,
    document_hash = settled.document_hash,
    chunks = settled.chunks,
    attempts = 0,
    failed_hash = null,
    last_error = null,
    embedded_at = clock_timestamp(),
    worker_id = %(worker_id)s,
    dead_at = null
from unnest(%(keys)b::text[], %(states)b::text[], %(hashes)b::bytea[], %(chunks)b::integer[])
    as settled (key, state, document_hash, chunks)
where records.pipeline_id = %(pipeline_id)s and records.key = pgembed.ledger_key(settled.key)
"""


def settle(
    connection: Connection,
    pipeline: Pipeline,
    findings: Sequence[Finding],
    state: str,
    *,
    worker_id: int | None,
) -> None:
    """Give the records of `findings` the state ``embedded`` or ``empty``, reached by a worker.

    `worker_id` is None for what was there before.
    """
    if not findings:
        return
    values = {
        "pipeline_id": pipeline.id,
        "generation": pipeline.generation,
        "worker_id": worker_id,
        "keys": [finding.key for finding in findings],
        "states": [state] * len(findings),
        "hashes": [finding.document_hash for finding in findings],
        "chunks": [finding.chunks if state == "embedded" else 0 for finding in findings],
    }
    connection.execute(SETTLE, values)


CHARGE = """
update pgembed.records
set attempts = charged.attempts,
    failed_hash = charged.failed_hash,
    last_error = charged.last_error
from unnest(%(keys)s::text[], %(attempts)s::integer[], %(hashes)s::bytea[], %(errors)s::text[])
    as charged (key, attempts, failed_hash, last_error)
where records.pipeline_id = %(pipeline_id)s and records.key = pgembed.ledger_key(charged.key)
"""

# Behind each of the statements below. The array is made once, and looked up by the index.
OF_KEYS = """
where pipeline_id = %(pipeline_id)s
    and key = any(array(select pgembed.ledger_key(listed) from unnest(%(keys)s::text[]) as listed))
"""

MARK_DEAD = """
update pgembed.records
set state = 'dead',
    generation = %(generation)s,
    document_hash = failed_hash,
    chunks = 0,
    embedded_at = null,
    worker_id = null,
    dead_at = clock_timestamp()
"""

CLEAR_FAILURES = """
update pgembed.records
set attempts = 0,
    failed_hash = null,
    last_error = null
"""

FORGET = "delete from pgembed.records"


def charge(
    connection: Connection,
    pipeline: Pipeline,
    failed: Sequence[Finding],
    current: Mapping[str, Current],
) -> None:
    """Count a failed attempt, with its error, against each record of `failed`."""
    if not failed:
        return
    values = {
        "pipeline_id": pipeline.id,
        "keys": [finding.key for finding in failed],
        "attempts": [current[finding.key].attempts_with(finding) for finding in failed],
        "hashes": [finding.document_hash for finding in failed],
        "errors": [printable(finding.error, MOST_STORED_CHARACTERS) for finding in failed],
    }
    connection.execute(CHARGE, values)


def mark_dead(connection: Connection, pipeline: Pipeline, keys: Sequence[str]) -> None:
    """Give up on the records `keys`, whose last failure is charged already."""
    _execute_of_keys(connection, MARK_DEAD, pipeline, keys, generation=pipeline.generation)


def clear_failures(connection: Connection, pipeline: Pipeline, keys: Sequence[str]) -> None:
    """Drop the failed attempts at another text of the records `keys`, which are settled."""
    _execute_of_keys(connection, CLEAR_FAILURES, pipeline, keys)


def forget(connection: Connection, pipeline: Pipeline, keys: Sequence[str]) -> None:
    """Delete the ledger rows of records that the source no longer has."""
    _execute_of_keys(connection, FORGET, pipeline, keys)


def _execute_of_keys(
    connection: Connection, change: str, pipeline: Pipeline, keys: Sequence[str], **values: object
) -> None:
    if keys:
        of_keys = {"pipeline_id": pipeline.id, "keys": list(keys)}
        connection.execute(change + OF_KEYS, {**of_keys, **values})
