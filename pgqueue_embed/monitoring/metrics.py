"""A snapshot in Prometheus's text format, for whoever watches with Grafana and is paged.

Every metric is made of the public views, so that a viewer's rights are enough. What a worker has
counted starts again at zero with its process, as Prometheus expects of counters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)

from pgqueue_embed.monitoring.bottleneck import StageSeconds
from pgqueue_embed.monitoring.snapshot import PipelineState, Snapshot, WorkerState
from pgqueue_embed.untrusted.foreign_text import printable

# Columns of pgembed.progress: metric, column, what it counts.
RECORDS = (
    ("records", "total", "Records that are done, were given up on, or wait in the queue."),
    ("done_records", "done", "Records embedded or empty, those that are pending again included."),
    ("pending_records", "pending", "Records in the queue, in flight and retrying included."),
    ("in_flight_records", "in_flight", "Pending records that a worker holds."),
    ("retrying_records", "retrying", "Pending records that failed before."),
    ("dead_records", "dead", "Dead letters: records given up on."),
    ("never_queued_records", "never_queued", "An estimate of rows that were never queued."),
    ("live_workers", "live_workers", "Worker processes heard of in the last 45 seconds."),
)
STAGE_SUFFIX = "_seconds"


def metrics_text(snapshot: Snapshot) -> bytes:
    """Return a snapshot in Prometheus's text format, UTF-8."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(snapshot))
    return generate_latest(registry)


class _Collector:
    """Fulfils prometheus_client.registry.Collector."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """Yield each metric with its samples."""
        yield from _of_pipelines(self._snapshot)
        yield from _of_workers(self._snapshot.workers)
        yield _met(self._snapshot)


def _of_pipelines(snapshot: Snapshot) -> Iterator[Metric]:
    pipelines, now = snapshot.pipelines, snapshot.now
    for name, column, what in RECORDS:
        yield _gauge(name, what, ((each.name, each.row[column]) for each in pipelines))
    yield _gauge(
        "paused",
        "Whether a pipeline is paused.",
        ((each.name, each.row["state"] == "paused") for each in pipelines),
    )
    yield _gauge(
        "records_per_second",
        "Records settled a second, smoothed over up to twelve minutes.",
        ((each.name, each.pace.records_per_second if each.pace else 0.0) for each in pipelines),
    )
    for name in ("chunks_per_second", "tokens_per_second"):
        what = f"{name.partition('_')[0].capitalize()} a second over the last minute."
        yield _gauge(name, what, ((each.name, each.row[name]) for each in pipelines))
    yield _time_left(pipelines)
    yield _gauge(
        "oldest_pending_seconds",
        "For how long the oldest record in the queue has waited.",
        ((each.name, _age(each.row["oldest_pending_at"], now) or 0.0) for each in pipelines),
    )
    yield _gauge(
        "capture_lag_seconds",
        "For how long the oldest captured change of the source has waited, or a record put first"
        " by hand.",
        ((each.name, _age(each.row["oldest_change_at"], now) or 0.0) for each in pipelines),
    )
    yield _gauge(
        "last_commit_age_seconds",
        "How long ago a worker last committed; absent if none has.",
        ((each.name, _age(each.row["last_commit_at"], now)) for each in pipelines),
    )
    yield _stages(pipelines)
    invalid = [each["pipeline"] for each in snapshot.invalid_indexes]
    yield _gauge(
        "invalid_vector_indexes",
        "Vector indexes that no search can use.",
        ((each.name, invalid.count(each.name)) for each in pipelines),
    )
    yield _gauge(
        "index_recall",
        "Share of the nearest chunks that searches by the index find, as pgembed evaluate measured"
        " last; absent if that was of another index.",
        ((each.name, snapshot.index_recalls.get(each.name)) for each in pipelines),
    )


def _time_left(pipelines: Sequence[PipelineState]) -> Metric:
    family = GaugeMetricFamily(
        "pgembed_time_left_seconds",
        "Time that what is pending will take, as a range; absent while it is not known.",
        labels=("pipeline", "bound"),
    )
    for each in pipelines:
        if each.time_left is not None:
            family.add_metric((each.name, "low"), each.time_left.low_seconds)
            family.add_metric((each.name, "high"), each.time_left.high_seconds)
    return family


def _stages(pipelines: Sequence[PipelineState]) -> Metric:
    family = GaugeMetricFamily(
        "pgembed_recent_stage_seconds",
        "Seconds that the loops of all workers spent in a stage in the last half hour; those of"
        " waiting for locks are a part of writing.",
        labels=("pipeline", "stage"),
    )
    for each in pipelines:
        _add_stages(family, (each.name,), each.stages)
    return family


def _add_stages(family: GaugeMetricFamily, labels: Sequence[str], stages: StageSeconds) -> None:
    for stage, seconds in asdict(stages).items():
        family.add_metric((*labels, stage.removesuffix(STAGE_SUFFIX)), seconds)


def _of_workers(workers: Sequence[WorkerState]) -> Iterator[Metric]:
    live = [each for each in workers if each.row["stopped_at"] is None]
    info = GaugeMetricFamily(
        "pgembed_worker_up",
        "Whether a worker process was heard of in the last 45 seconds.",
        labels=("host", "pid", "device", "precision", "version"),
    )
    for each in live:
        row = each.row
        labels = (row["host"], row["pid"], row["device"], row["precision"], row["version"])
        info.add_metric([_text(label) for label in labels], float(each.is_live))
    yield info
    yield _of_each(
        "worker_canary_cosine",
        "Lowest cosine of known texts, as it computes them, to their vectors in fp32 on the CPU.",
        live,
        "canary_cosine",
    )
    yield _of_each("worker_memory_bytes", "Memory, that on the GPU included.", live, "memory_bytes")
    yield _of_each(
        "worker_chunks_per_second",
        "Chunks written a second over the last minute.",
        live,
        "chunks_per_second",
    )
    yield _stages_of_workers(live)
    for name, what, column in (
        ("worker_records", "Records that the process has settled.", "records"),
        ("worker_leases_lost", "Claims that the server took back from it.", "leases_lost"),
        ("worker_fp32_chunks", "Chunks that were computed again in fp32.", "fp32_chunks"),
    ):
        yield _of_each(name, what, live, column, family=CounterMetricFamily)


def _stages_of_workers(workers: Sequence[WorkerState]) -> Metric:
    family = GaugeMetricFamily(
        "pgembed_worker_recent_stage_seconds",
        "Seconds that the loops of a worker process spent in a stage in the last half hour.",
        labels=("host", "pid", "stage"),
    )
    for each in workers:
        _add_stages(family, _place(each), each.stages)
    return family


# Of what happens to worker processes, what is worth an alarm.
MET = ("crashed", "restarted", "recovered", "lease lost")


def _met(snapshot: Snapshot) -> Metric:
    family = GaugeMetricFamily(
        "pgembed_recent_worker_events",
        "How often the worker processes of a host crashed, were restarted, were heard of again or"
        " lost a lease in the last hour.",
        labels=("host", "event"),
    )
    hosts = {str(each.row["host"]) for each in snapshot.workers} | {
        host for host, _ in snapshot.met
    }
    for host in sorted(hosts):
        for event in MET:
            labels = (_text(host), event.replace(" ", "_"))
            family.add_metric(labels, snapshot.met.get((host, event), 0))
    return family


def _of_each(
    name: str,
    what: str,
    workers: Iterable[WorkerState],
    column: str,
    *,
    family: type[GaugeMetricFamily | CounterMetricFamily] = GaugeMetricFamily,
) -> Metric:
    metric = family(f"pgembed_{name}", what, labels=("host", "pid"))
    for each in workers:
        if each.row[column] is not None:
            metric.add_metric(_place(each), float(each.row[column]))
    return metric


def _place(worker: WorkerState) -> tuple[str, str]:
    return _text(worker.row["host"]), _text(worker.row["pid"])


def _gauge(name: str, what: str, values: Iterable[tuple[str, Any]]) -> Metric:
    """Return a metric with a value for each pipeline; one without a value is left out."""
    metric = GaugeMetricFamily(f"pgembed_{name}", what, labels=("pipeline",))
    for pipeline, value in values:
        if value is not None:
            metric.add_metric((pipeline,), float(value))
    return metric


def _age(moment: datetime | None, now: datetime) -> float | None:
    return None if moment is None else max((now - moment).total_seconds(), 0.0)


def _text(value: object) -> str:
    """Return a label; a machine may call itself anything, and a terminal may show it."""
    return "" if value is None else printable(str(value))
