"""A snapshot in the words of all screens, as values for templates, without markup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

from pgqueue_embed.monitoring import news, words
from pgqueue_embed.monitoring.snapshot import (
    PipelineState,
    Row,
    Snapshot,
    WorkerState,
)
from pgqueue_embed.pipeline.catalog import why_paused
from pgqueue_embed.quantities import duration, size
from pgqueue_embed.web.charts import Columns, columns

# More cards than these are a list.
MOST_CARDS = 24

MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, kw_only=True)
class PipelineView:
    """A pipeline as a card: `tone` is good, calm, waiting or wrong."""

    name: str
    anchor: str
    row: Row
    tone: str
    outlook: str
    percent: float
    facts: Sequence[str]
    rate: str | None
    chart: Columns
    why_paused: str | None
    is_busy: bool


@dataclass(frozen=True, kw_only=True)
class WorkerView:
    """A worker as a line of a table; `sign` is its state as one letter."""

    name: str
    row: Row
    state: str
    sign: str
    tone: str
    rate: str
    share: str
    memory: str
    commit: str
    chart: Columns


@dataclass(frozen=True, kw_only=True)
class Overview:
    """All that moves on a page: `names` of pipelines if it is about some."""

    now: datetime
    busy: Sequence[PipelineView]
    others: Sequence[PipelineView]
    workers: Sequence[WorkerView]
    stopped: str | None
    failures: Sequence[Row]
    events: Sequence[Row]
    notes: Sequence[str]
    title: str


TONES = {
    "complete": "good",
    "queue empty": "waiting",
    "paused": "waiting",
    words.NO_WORKER: "waiting",
    "nothing yet": "calm",
}

STATE_TONES = {
    "working": "good",
    "idle": "calm",
    "stopping": "waiting",
    "silent": "waiting",
    "crashed": "wrong",
    "stopped": "calm",
}


def overview(snapshot: Snapshot, name: str | None = None) -> Overview:
    """Return what there is to see of everything, or of the pipeline `name`."""
    pipelines = [
        each for each in snapshot.pipelines if name in (None, each.name, each.row["next_of"])
    ]
    views = [pipeline(each, snapshot.now) for each in pipelines]
    names = {each.name for each in views}
    mine = [
        each
        for each in snapshot.workers
        if name is None or names.intersection(each.row["pipelines"])
    ]
    shown, stopped = news.parted(mine)
    busy = [each for each in views if each.is_busy] if name is None else views
    return Overview(
        now=snapshot.now,
        busy=busy[:MOST_CARDS],
        others=[*busy[MOST_CARDS:], *(each for each in views if each not in busy)],
        workers=[worker(each, snapshot) for each in shown],
        stopped=news.stopped_line(stopped) if stopped else None,
        failures=[row for row in snapshot.failures if name is None or row["pipeline"] in names],
        events=[row for row in snapshot.events if _is_about(row, names, mine, name)],
        notes=words.notes(snapshot) if name is None else [],
        title=_title(busy),
    )


def pipeline(state: PipelineState, now: datetime) -> PipelineView:
    """Return a pipeline as a card."""
    row = state.row
    outlook = words.outlook(state)
    is_moving = bool(row["pending"] and row["live_workers"] and state.pace)
    is_paused = row["state"] == "paused"
    return PipelineView(
        name=state.name,
        anchor=anchor(state.name),
        row=row,
        tone=TONES.get(outlook, "calm"),
        outlook=outlook,
        percent=float(row["percent"]),
        facts=words.facts(state),
        rate=words.rate(state.pace.records_per_second) if is_moving and state.pace else None,
        chart=columns(state.minutes, ends_at=now, step=MINUTE, noun="record"),
        why_paused=why_paused(state.name, row["state_reason"]) if is_paused else None,
        is_busy=bool(row["pending"] or row["dead"]),
    )


def worker(state: WorkerState, snapshot: Snapshot) -> WorkerView:
    """Return a worker as a line of a table."""
    says = words.worker_state(state, snapshot.now)
    ago = state.commit_seconds_ago
    return WorkerView(
        name=words.worker_name(state.row),
        row=state.row,
        state=says,
        sign=words.sign(says),
        tone=STATE_TONES.get(says.split()[0], "calm"),
        rate=words.rate(state.pace.records_per_second if state.pace and state.is_live else 0),
        share=news.share_of_work(state, snapshot),
        memory=size(state.row["memory_bytes"]),
        commit="–" if ago is None else duration(ago),
        chart=columns(state.minutes, ends_at=snapshot.now, step=MINUTE, noun="record"),
    )


def anchor(name: str) -> str:
    """Return what an element about `name` is called in a page, whatever is in the name."""
    return sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _is_about(row: Row, names: set[str], workers: Sequence[WorkerState], name: str | None) -> bool:
    if name is None:
        return True
    ids = {each.row["worker_id"] for each in workers}
    return row["pipeline"] in names or row["worker_id"] in ids


def _title(busy: Sequence[PipelineView]) -> str:
    """Return what a tab says: the first pipeline that moves."""
    moving: list[Any] = [each for each in busy if each.row["pending"]]
    if not moving:
        return "pgembed"
    return f"{moving[0].percent:.1f} % · {moving[0].name}"
