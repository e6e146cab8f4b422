"""The news of a snapshot: busy pipelines, workers that run or have crashed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pgqueue_embed.monitoring.snapshot import Snapshot, WorkerState
from pgqueue_embed.untrusted.foreign_text import printable
from pgqueue_embed.worker.stop_reasons import CRASHED

MOST_REASON = 60


def collapsed(snapshot: Snapshot) -> Snapshot:
    """Return it without the pipelines in which nothing happens, if something does in others."""
    busy = [each for each in snapshot.pipelines if each.row["pending"] or each.row["dead"]]
    return replace(snapshot, pipelines=busy) if busy else snapshot


def parted(workers: Sequence[WorkerState]) -> tuple[list[WorkerState], list[WorkerState]]:
    """Part the workers that are to be shown from those that have stopped and are news no more."""
    live_hosts = {each.row["host"] for each in workers if each.is_live}
    shown: list[WorkerState] = []
    stopped: list[WorkerState] = []
    for each in workers:
        crashed = str(each.row["stop_reason"]).startswith(CRASHED)
        is_news = crashed and each.row["host"] not in live_hosts
        ended = each.row["state"] == "stopped" and not is_news
        (stopped if ended else shown).append(each)
    return shown, stopped


def stopped_line(stopped: Sequence[WorkerState]) -> str:
    """Return on one line how many workers have ended, by their reasons."""
    reasons: dict[str, int] = {}
    for each in stopped:
        reason = printable(each.row["stop_reason"] or "stopped", MOST_REASON)
        reasons[reason] = reasons.get(reason, 0) + 1
    told = ", ".join(f"{number} {reason}" for reason, number in sorted(reasons.items()))
    return f"ended in the last 10 minutes: {told}"


def share_of_work(worker: WorkerState, snapshot: Snapshot) -> str:
    """Return which part of all records is settled by a worker: ``35 %``."""
    total = sum(each.pace.records_per_second for each in snapshot.workers if each.pace)
    if not worker.pace or not total or not worker.is_live:
        return "–"
    return f"{100 * worker.pace.records_per_second / total:.0f} %"
