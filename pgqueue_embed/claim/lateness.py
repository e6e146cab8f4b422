"""Claims that run out of time: who is charged, and how a record is read that takes too long.

An item whose claim ran out of time twice in one process is charged as if the process had died over
it: it is set apart, split, and the one record that is never done in time becomes a dead letter. A
network that is silent, or a database that is away, is no record's fault and charged to none.
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from pgqueue_embed.db.session import Connection, NoAnswer, OutOfTime
from pgqueue_embed.errors import LeaseExpired
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.source.read import SourceRecord, read_records

# A read that takes longer leaves no time for the rest of its claim, and is charged before the
# server has taken the claim back.
READ_SHARE = 0.8

# A record whose hash cannot be read within this share of the lease is given up without one.
HASH_SHARE = 0.25

# No byte of a text: only its hash.
NO_TEXT = -1


def is_late(error: BaseException) -> bool:
    """Return whether a claim has run out of time by its own doing, and not by a silent network."""
    return isinstance(error, (OutOfTime, LeaseExpired)) and not isinstance(error, NoAnswer)


LATE = """
select attempts.id, attempts.work_id
from pgembed.attempts
join pgembed.work on work.id = attempts.work_id
where attempts.id = any(%s) and work.records > 0
"""


def charge_late(side: Connection, attempt_ids: list[int], late: set[int], reason: str) -> None:
    """Charge the items that were `late` before for their `attempt_ids`, and note the others there.

    Takes out of `attempt_ids` what is charged. Comparisons and sweeps are not: they have no record
    to blame, and get smaller.
    """
    rows = side.execute(LATE, (attempt_ids,)).fetchall()
    again = [attempt_id for attempt_id, work_id in rows if work_id in late]
    side.execute(
        "update pgembed.attempts set died_at = clock_timestamp(), reason = %s where id = any(%s)",
        (reason, again),
    )
    attempt_ids[:] = [attempt_id for attempt_id in attempt_ids if attempt_id not in again]
    late ^= {work_id for _, work_id in rows}


def read_in_time(
    side: Connection,
    pipeline: Pipeline,
    keys: Sequence[str],
    embed_again: Sequence[bool],
    *,
    limit_bytes: int,
) -> list[SourceRecord]:
    """Return what `read_records` does; an OutOfTime that it raises says what took so long."""
    try:
        return read_records(side, pipeline, keys, embed_again, limit_bytes=limit_bytes)
    except NoAnswer:
        raise
    except OutOfTime:
        raise OutOfTime(
            f"reading {pipeline.source} took longer than {side.patience_seconds:g} s; a longer"
            " --lease allows more"
        ) from None


def is_hash_readable(
    side: Connection, pipeline: Pipeline, key: str, *, lease_seconds: float
) -> bool:
    """Return whether the source tells the hash of the record `key` before long."""
    try:
        with side.transaction():
            side.execute(f"set local statement_timeout = {int(lease_seconds * HASH_SHARE * 1000)}")
            read_records(side, pipeline, [key], [True], limit_bytes=NO_TEXT)
    except (OutOfTime, psycopg.errors.QueryCanceled):
        return False
    return True
