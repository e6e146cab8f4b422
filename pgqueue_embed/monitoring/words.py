"""A snapshot's pipelines and workers in the words that all screens and lines use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgqueue_embed.monitoring.progress import is_complete
from pgqueue_embed.quantities import count, duration, size, span
from pgqueue_embed.untrusted.shell import command
from pgqueue_embed.worker.stop_reasons import (
    ANOTHER_MODEL,
    CRASHED,
    DRAINED,
    MAX_RECORDS,
    RECYCLED,
    STOPPED,
)

if TYPE_CHECKING:
    from pgqueue_embed.monitoring.snapshot import PipelineState, Row, Snapshot, WorkerState

# Reasons of a stop that need no attention.
ORDINARY_ENDINGS = (STOPPED, DRAINED, MAX_RECORDS, RECYCLED, ANOTHER_MODEL)

# For so long after its last commit a worker without a claim is not idle, but between two of them.
BETWEEN_CLAIMS_SECONDS = 15.0


# What a worker does, as a sign.
SIGNS = {
    "working": "●",
    "idle": "○",
    "stopping": "◌",
    "silent": "◐",
    "crashed": "✕",
    "stopped": "·",
}


def sign(worker_state: str) -> str:
    """Return the sign of what `worker_state` says; a question mark for what is new to us."""
    return SIGNS.get(worker_state.split()[0], "?")


def rate(value: Any) -> str:
    """Return a number per second: ``–``, ``4.2``, ``1,234``."""
    return "–" if not value else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


NO_WORKER = "no worker"
STARTING = "starting"

# Why other workers are idle.
NO_WORK = "no work left to claim"


def outlook(pipeline: PipelineState, no_worker: str = NO_WORKER) -> str:
    """Return how long it will take, or why that cannot be said.

    `no_worker` is what it says where none is at work.
    """
    row = pipeline.row
    if row["state"] == "paused":
        return "paused"
    if not row["total"] and not row["pending"]:
        return "nothing yet"
    if not row["pending"]:
        return "complete" if is_complete(row) else "queue empty"
    if not row["live_workers"] and not row["in_flight"]:
        return no_worker
    if row["retrying"] == row["pending"]:
        return "waiting for retries"
    left = pipeline.time_left
    if left is None:
        return "time left not yet known"
    return f"{span(left.low_seconds, left.high_seconds)} left"


def facts(pipeline: PipelineState) -> list[str]:
    """Return what else there is to say of a pipeline's records, the most important first."""
    row = pipeline.row
    said = [f"{row['done']:,} of {row['total']:,}"]
    if row["pending_new"] and row["pending_changed"]:
        said.append(f"{row['pending_new']:,} new")
    if row["pending_changed"]:
        said.append(f"{row['pending_changed']:,} changed")
    if row["dead"]:
        said.append(f"{row['dead']:,} dead")
    if row["retrying"]:
        said.append(f"{row['retrying']:,} retrying")
    if 0 < row["pending"] <= row["in_flight"]:
        said.append(NO_WORK)
    if row["pending"] and pipeline.bottleneck:
        said.append(f"time goes to: {pipeline.bottleneck}")
    return said


def line(pipeline: PipelineState, no_worker: str = NO_WORKER) -> str:
    """Return a pipeline on one line, for a file: ``68.2 % · 412 records/s · 2 h 10 min left``."""
    row = pipeline.row
    said = [f"{row['done']:,}/{row['total']:,} records", f"{row['percent']:.1f} %"]
    if row["pending_changed"]:
        # These are done, too, and the share leaves them out.
        said.append(f"{row['pending_changed']:,} changed")
    if row["pending"] and pipeline.pace:
        said.append(f"{rate(pipeline.pace.records_per_second)} records/s")
    said.append(outlook(pipeline, no_worker))
    if row["live_workers"]:
        said.append(count(row["live_workers"], "worker"))
    if row["dead"]:
        said.append(f"{row['dead']:,} dead")
    return f"{row['pipeline']}: {' · '.join(said)}"


def worker_name(row: Row) -> str:
    """Return host and process of a worker, without the domain: ``mac-mini:4711``."""
    host = str(row["host"])
    is_address = host.replace(".", "").isdigit()
    return f"{host if is_address else host.split('.')[0]}:{row['pid']}"


def worker_state(worker: WorkerState, now: Any) -> str:
    """Return what a worker is doing: working, idle, stopping, silent, crashed or stopped."""
    row = worker.row
    if row["state"] == "silent":
        minutes = int((now - row["heartbeat_at"]).total_seconds() // 60)
        return f"silent {duration(60 * minutes)}" if minutes else "silent"
    if row["state"] == "stopped":
        return "crashed" if str(row["stop_reason"]).startswith(CRASHED) else "stopped"
    if row["state"] != "working":
        return str(row["state"])
    ago = worker.commit_seconds_ago
    works = worker.in_flight or (ago is not None and ago < BETWEEN_CLAIMS_SECONDS)
    return "working" if works else "idle"


def event(row: Row) -> str:
    """Return an event on one line, without its time."""
    who = row["pipeline"] if row["host"] is None else worker_name(row)
    detail = f": {row['detail']}" if row["detail"] and row["detail"] != row["kind"] else ""
    return f"{who} {row['kind']}{detail}"


def never_queued(row: Row) -> str:
    """Return what an empty queue leaves out, and the way to have it."""
    name = row["pipeline"]
    rows = count(row["never_queued"], "source row")
    were = "was" if row["never_queued"] == 1 else "were"
    return (
        f"{name}: queue empty; about {rows} {were} never queued (an estimate, by PostgreSQL's"
        f" statistics); queue them: {command('enqueue', name)}"
    )


def switch_now(row: Row) -> str:
    """Return what is left to do for a next generation of which nothing is pending."""
    switch = command("alter", row["next_of"], "--switch")
    return f"nothing of {row['pipeline']} is pending; let searches use it: {switch}"


def notes(snapshot: Snapshot) -> list[str]:
    """Return what a person may do next, or should know."""
    said = [note for each in snapshot.pipelines for note in _pipeline_notes(each.row)]
    workers = [each.row for each in snapshot.workers]
    said += [
        f"{worker_name(row)} stopped: {row['stop_reason']}"
        for row in workers
        if row["stop_reason"] and row["stop_reason"] not in ORDINARY_ENDINGS
    ]
    said += [
        f"{worker_name(row)} leaves work to others: {row['unserved']}"
        for row in workers
        if row["unserved"] and row["state"] != "stopped"
    ]
    said += [
        f"{name} has no vector index; build one: {command('index', name)}"
        for name in snapshot.unindexed
    ]
    return said + [_cost(each) for each in snapshot.costly_indexes]


def _cost(index: Row) -> str:
    """Return what is dear beside an HNSW index, and what is cheaper."""
    which = f"index {index['index_name']} ({size(index['size_bytes'])})"
    if not index["pending"]:
        return (
            f"{index['pipeline']}: {count(index['dead_rows'], 'chunk')} are gone, and the next"
            f" vacuum goes through all of {which} for them"
        )
    return (
        f"{index['pipeline']}: {count(index['pending'], 'record')} wait to be written beside"
        f" {which}, which costs many times as much as without it; for so many, drop it and build it"
        f" anew afterwards, or make a next generation: {command('alter', index['pipeline'])}"
    )


def _pipeline_notes(row: Row) -> list[str]:
    from pgqueue_embed.pipeline.catalog import why_paused

    name = row["pipeline"]
    said = []
    if row["dead"]:
        letters = count(row["dead"], "dead letter")
        said.append(f"{name} has {letters}; read: {command('failures', name)}")
    if not (row["pending"] or row["next_of"]) and row["never_queued"]:
        said.append(never_queued(row))
    if row["state"] == "paused":
        said.append(f"{name} is paused: {why_paused(name, row['state_reason'])}")
    elif row["next_of"] and row["total"] and not row["pending"]:
        said.append(switch_now(row))
    elif row["pending"] and not row["live_workers"]:
        said.append(f"{name} waits for a worker; on any machine: pgembed work")
    return said


def effort_lapsed(name: str, ef_search: int) -> str:
    """Return that a measured ef_search is not used any more, and the way out."""
    return (
        f"the ef_search {ef_search} of {name} was measured by another index, or other vectors;"
        f" searches use the usual one until you measure anew: {command('evaluate', name)}"
    )
