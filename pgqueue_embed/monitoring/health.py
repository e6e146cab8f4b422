"""Health checks, for cron, load balancers and alarms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from pgqueue_embed.db.session import Connection
from pgqueue_embed.monitoring.snapshot import Row, Snapshot, read_snapshot
from pgqueue_embed.pipeline.catalog import MEND_AND_RESUME, why_paused


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is taken for healthy: no commit for so many `minutes`, so many new dead letters in them.

    `allow_silent` is for machines that come and go.
    """

    minutes: int = 15
    new_dead_letters: int = 0
    allow_silent: bool = False


# What died in these minutes, less what was put back.
GROWTH = """
select pipeline, sum(dead)::bigint
from pgembed.history
where minute > statement_timestamp() - make_interval(mins => %s)
group by pipeline
"""


def read_troubles(connection: Connection, name: str | None, limits: Limits) -> list[str]:
    """Return what is wrong with the pipeline `name`, or with all, each in some words.

    Raises what `read_snapshot` raises.
    """
    snapshot = read_snapshot(connection, name)
    grown = dict(connection.execute(GROWTH, (limits.minutes,)).fetchall())
    return list(troubles(snapshot, grown, limits))


def troubles(snapshot: Snapshot, grown: Mapping[str, int], limits: Limits) -> Iterator[str]:
    """Yield what is wrong; `grown` has by how many the dead letters of each pipeline have grown."""
    patience = timedelta(minutes=limits.minutes)
    for pipeline in snapshot.pipelines:
        row = pipeline.row
        if row["state"] == "paused" and MEND_AND_RESUME in str(row["state_reason"]):
            yield f"{pipeline.name} is paused: {why_paused(pipeline.name, row['state_reason'])}"
        if _is_stuck(row, snapshot.now, patience):
            yield (
                f"{pipeline.name} has {row['pending']:,} records pending and no commit for"
                f" {limits.minutes} min"
            )
        died = grown.get(pipeline.name, 0)
        if died > limits.new_dead_letters:
            yield f"{pipeline.name} has {died:,} new dead letters in {limits.minutes} min"
    if not limits.allow_silent:
        yield from _silent(snapshot)
    for index in snapshot.invalid_indexes:
        if not index["is_building"]:
            yield f"index {index['index_name']} of {index['pipeline']} is invalid"


def _is_stuck(row: Row, now: datetime, patience: timedelta) -> bool:
    """Return whether work waits that could be done, and nothing of it is."""
    # A retry may be an hour away.
    if row["state"] == "paused" or row["pending"] <= row["retrying"]:
        return False
    last = max(each for each in (row["oldest_pending_at"], row["last_commit_at"]) if each)
    return bool(now - last > patience)


def _silent(snapshot: Snapshot) -> Iterator[str]:
    live = {each.row["host"] for each in snapshot.workers if each.is_live}
    silent = {
        each.row["host"]: each.row["heartbeat_at"]
        for each in snapshot.workers
        if each.row["state"] == "silent" and each.row["host"] not in live
    }
    for host, heartbeat_at in sorted(silent.items()):
        minutes = int((snapshot.now - heartbeat_at).total_seconds() // 60)
        yield f"nothing is heard of {host} for {max(minutes, 1)} min"
