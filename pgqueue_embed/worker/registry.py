"""The workers table: who works, for people to look at. No correctness depends on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.types.json import Jsonb

from pgqueue_embed.db.session import Connection
from pgqueue_embed.untrusted.foreign_text import MOST_STORED_CHARACTERS, printable
from pgqueue_embed.version import VERSION


@dataclass(frozen=True, kw_only=True)
class WorkerReport:
    """What a worker process says of its work so far; seconds are those gone by since."""

    records: int
    fp32_chunks: int
    leases_lost: int
    commit_seconds_ago: float | None
    last_error: str | None
    error_seconds_ago: float | None


@dataclass(frozen=True, kw_only=True)
class WorkerIdentity:
    """What a worker process says about itself."""

    device: str
    precision: str
    model: str
    concurrency: int
    pipeline_ids: Sequence[int]
    canary_cosine: float = 1.0


def register(connection: Connection, identity: WorkerIdentity) -> int:
    """Insert a row for this process and return its id."""
    worker_id = connection.value(
        """
        insert into pgembed.workers
            (host, pid, device, precision, model, version, concurrency, pipeline_ids, canary_cosine)
        values (%s, %s, %s, %s, %s, %s, %s, %s, %s)
        returning id
        """,
        _described(identity),
    )
    return int(worker_id)


def register_again(connection: Connection, worker_id: int, identity: WorkerIdentity) -> None:
    """Insert the row of a process once more, which was taken for one that ended long ago."""
    connection.execute(
        """
        insert into pgembed.workers
            (
                id, host, pid, device, precision, model, version, concurrency, pipeline_ids,
                canary_cosine
            )
        overriding system value
        values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
        on conflict (id) do nothing
        """,
        (worker_id, *_described(identity)),
    )


def _described(identity: WorkerIdentity) -> tuple[Any, ...]:
    return (
        platform.node() or "unknown",
        os.getpid(),
        identity.device,
        identity.precision,
        identity.model,
        VERSION,
        identity.concurrency,
        list(identity.pipeline_ids),
        _cosine(identity.canary_cosine),
    )


def _cosine(computed: float) -> float:
    """Return a cosine without what rounding has added to it."""
    return max(-1.0, min(1.0, computed))


def heartbeat(
    connection: Connection,
    worker_id: int,
    *,
    state: str,
    identity: WorkerIdentity,
    memory_bytes: int,
    pipeline_ids: Sequence[int],
    unserved: Mapping[int, str],
) -> bool:
    """Say that the process lives, how it computes, how much memory it takes, what it cannot serve.

    `unserved` has the reasons. Returns whether its row is there.
    """
    served = [each for each in pipeline_ids if each not in unserved]
    updated = connection.execute(
        """
        update pgembed.workers
        set heartbeat_at = clock_timestamp(),
            state = %s,
            precision = %s,
            canary_cosine = %s,
            memory_bytes = %s,
            pipeline_ids = %s,
            unserved = %s
        where id = %s
        """,
        (
            state,
            identity.precision,
            _cosine(identity.canary_cosine),
            memory_bytes,
            served,
            Jsonb(dict(unserved)),
            worker_id,
        ),
    )
    return updated.rowcount > 0


def report_work(connection: Connection, worker_id: int, report: WorkerReport) -> None:
    """Say what the process has done so far."""
    connection.execute(
        """
        update pgembed.workers
        set records = %s,
            fp32_chunks = %s,
            leases_lost = %s,
            last_commit_at = clock_timestamp() - make_interval(secs => %s),
            last_error = %s,
            last_error_at = clock_timestamp() - make_interval(secs => %s)
        where id = %s
        """,
        (
            report.records,
            report.fp32_chunks,
            report.leases_lost,
            report.commit_seconds_ago,
            report.last_error and printable(report.last_error, MOST_STORED_CHARACTERS),
            report.error_seconds_ago,
            worker_id,
        ),
    )


ANOTHER_ROLE_SERVES = """
select exists (
    select
    from pgembed.workers
    where id <> %(worker_id)s
        and role <> current_user
        and stopped_at is null
        and heartbeat_at > clock_timestamp() - interval '45 seconds'
        and %(pipeline_id)s = any (pipeline_ids)
        and not unserved ? %(pipeline_id)s::text
)
"""


def another_role_serves(connection: Connection, pipeline_id: int, worker_id: int) -> bool:
    """Return whether a worker of another role than this session's is at work on a pipeline.

    It may find no fault where worker `worker_id` has found one; if it does, it is asked in turn,
    and the last role agrees.
    """
    values = {"pipeline_id": pipeline_id, "worker_id": worker_id}
    found = connection.value(ANOTHER_ROLE_SERVES, values)
    return bool(found)


def sign_off(connection: Connection, worker_id: int, reason: str) -> None:
    """Say that the process has ended, and why; the first reason given stays."""
    connection.execute(
        """
        update pgembed.workers
        set stopped_at = clock_timestamp(), stop_reason = %s, state = 'stopped'
        where id = %s and stopped_at is null
        """,
        (printable(reason, MOST_STORED_CHARACTERS), worker_id),
    )
