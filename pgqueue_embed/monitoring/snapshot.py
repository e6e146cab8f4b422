"""One look at everything: pipelines, workers, recent work, events, failures.

By the public views alone, in a few statements that are cheap whatever the size of the queue, the
ledger and the history, so that it may be taken every second and with a viewer's rights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import dict_row

from pgqueue_embed.db.migrate import check_schema
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import NotFound
from pgqueue_embed.monitoring.bottleneck import StageSeconds, bottleneck
from pgqueue_embed.monitoring.pace import HistoryStep, Pace, TimeLeft, pace_of, time_left
from pgqueue_embed.monitoring.progress import Progress
from pgqueue_embed.pipeline.catalog import no_pipeline

Row = dict[str, Any]

# How far back the columns of a screen go.
HISTORY_MINUTES = 30

MOST_EVENTS = 50
MOST_FAILURE_GROUPS = 20


@dataclass(frozen=True, kw_only=True)
class PipelineState:
    """A row of pgembed.progress by column name, and what recent work says of it.

    `minutes` are records settled in each of the last HISTORY_MINUTES, oldest first, `stages` the
    seconds spent in all of these minutes. `time_left` is None while it is not known, `bottleneck`
    while nothing takes most of the time.
    """

    row: Row
    pace: Pace | None
    minutes: Sequence[int]
    stages: StageSeconds
    bottleneck: str | None

    @property
    def name(self) -> str:
        """The pipeline's name."""
        return str(self.row["pipeline"])

    @property
    def time_left(self) -> TimeLeft | None:
        """For how long what is pending will take: new, changed and retrying records."""
        return time_left(self.row["pending"], self.pace)


@dataclass(frozen=True, kw_only=True)
class WorkerState:
    """A row of pgembed.worker_status by column name, `minutes` and `stages` as for a pipeline.

    `in_flight` is how many records it holds at this moment; `commit_seconds_ago` is None for a
    process that has committed nothing yet.
    """

    row: Row
    pace: Pace | None
    minutes: Sequence[int]
    stages: StageSeconds
    in_flight: int
    commit_seconds_ago: float | None

    @property
    def is_live(self) -> bool:
        """Whether it runs and was heard of lately."""
        return self.row["state"] not in ("stopped", "silent")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """How everything stands at `now`, by the database's clock.

    `place` says where that is, if it is the private server. `events` are rows of pgembed.events,
    the newest first, `failures` of pgembed.failure_groups, the largest first. `unindexed` names
    the pipelines that have vectors, nothing pending and no vector index; `invalid_indexes` has the
    rows of pgembed.vector_indexes that no search can use, `costly_indexes` those beside which much
    waits to be written or vacuumed, with the `pending` records. `index_recalls` has the share of
    the nearest chunks that searches find, by pipeline, where it was measured. `met` says how often
    something happened to worker processes in the last hour, by host and kind of event.
    """

    place: str
    now: datetime
    pipelines: Sequence[PipelineState]
    workers: Sequence[WorkerState]
    events: Sequence[Row]
    failures: Sequence[Row]
    unindexed: Sequence[str]
    invalid_indexes: Sequence[Row]
    costly_indexes: Sequence[Row]
    index_recalls: Mapping[str, float]
    met: Mapping[tuple[str, str], int]


def read_snapshot(connection: Connection, name: str | None = None) -> Snapshot:
    """Return how the pipeline `name`, or every pipeline, stands, with its workers.

    With a pipeline comes its next generation. Raises NotFound for an unknown name, MigrationError
    for a schema that has not what is read.
    """
    with _explained(connection):
        progress = _progress(connection, name)
        names = None if name is None else [row["pipeline"] for row in progress]
        now = read_rows(connection, NOW, {})[0]["now"]
        workers = read_rows(connection, WORKERS, {"names": names})
        recent = read_rows(connection, RECENT, {"names": names})
        by_pipeline, by_worker = _grouped(recent, "pipeline"), _grouped(recent, "worker_id")
        flying = {
            (row["host"], row["pid"]): row["records"]
            for row in read_rows(connection, IN_FLIGHT, {})
        }
        dead = [row["pipeline"] for row in progress if row["dead"]]
        indexes = read_rows(connection, INDEXES, {"names": names})
        return Snapshot(
            place=connection.place_if_private,
            now=now,
            pipelines=[_pipeline(row, by_pipeline.get(row["pipeline"], [])) for row in progress],
            workers=[
                _worker(row, by_worker.get(row["worker_id"], []), flying, now) for row in workers
            ],
            events=read_rows(connection, EVENTS, {"names": names, "limit": MOST_EVENTS}),
            failures=_failures(connection, dead),
            unindexed=_unindexed(progress, indexes),
            invalid_indexes=[each for each in indexes if not each["is_valid"]],
            costly_indexes=_costly(progress, indexes),
            index_recalls={
                each["pipeline"]: each["measured_recall"]
                for each in indexes
                if each["is_valid"] and each["measured_recall"] is not None
            },
            met={
                (row["host"], row["kind"]): row["times"] for row in read_rows(connection, MET, {})
            },
        )


def read_progress(connection: Connection, name: str) -> Progress:
    """Return how far the pipeline called `name` is; raises NotFound when there is none."""
    with _explained(connection):
        (row, *_) = (each for each in _progress(connection, name) if each["pipeline"] == name)
    return Progress.of(row)


@contextmanager
def _explained(connection: Connection) -> Iterator[None]:
    """Raise MigrationError instead, if something is not there since the schema is another one."""
    try:
        yield
    except (
        psycopg.errors.InvalidSchemaName,
        psycopg.errors.UndefinedColumn,
        psycopg.errors.UndefinedTable,
    ):
        check_schema(connection)
        raise


NOW = "select clock_timestamp() as now"

PROGRESS = "select * from pgembed.progress order by pipeline"

# A stopped worker is news for a while; a silent one (its lid is closed, or it crashed) for longer.
WORKERS = """
select *
from pgembed.worker_status
where (
        stopped_at > statement_timestamp() - interval '10 minutes'
        or (stopped_at is null and heartbeat_at > statement_timestamp() - interval '1 day')
    )
    and (%(names)s::text[] is null or pipelines && %(names)s)
order by state = 'stopped', host, pid, worker_id
"""

# By pipeline, and by worker, in steps.
RECENT = """
select
    pipeline,
    worker_id,
    extract(epoch from statement_timestamp() - min(began_at))::double precision
        as began_seconds_ago,
    extract(epoch from statement_timestamp() - max(last_commit_at))::double precision
        as ended_seconds_ago,
    sum(records)::bigint as records,
    sum(read_seconds) as read_seconds,
    sum(chunk_seconds) as chunk_seconds,
    sum(embed_seconds) as embed_seconds,
    sum(write_seconds) as write_seconds,
    sum(lock_seconds) as lock_seconds
from pgembed.recent_history
where %(names)s::text[] is null or pipeline = any (%(names)s)
group by grouping sets ((pipeline, step), (worker_id, step))
order by step
"""

IN_FLIGHT = """
select host, pid, sum(records)::bigint as records from pgembed.in_flight group by host, pid
"""

EVENTS = """
select *
from pgembed.events
where %(names)s::text[] is null or pipeline is null or pipeline = any (%(names)s)
order by happened_at desc
limit %(limit)s
"""

MET = """
select host, kind, count(*) as times
from pgembed.events
where happened_at > statement_timestamp() - interval '1 hour' and host is not null
group by host, kind
"""

FAILURES = """
select *
from pgembed.failure_groups
where pipeline = any (%(names)s)
order by failures desc, error
limit %(limit)s
"""

INDEXES = """
select *
from pgembed.vector_indexes
where %(names)s::text[] is null or pipeline = any (%(names)s)
order by pipeline, index_name
"""


def read_rows(connection: Connection, query: str, values: Row) -> list[Row]:
    """Return the rows of a query over the views, each by the names of its columns."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, values).fetchall()


def _progress(connection: Connection, name: str | None) -> list[Row]:
    rows = read_rows(connection, PROGRESS, {})
    if name is None:
        return rows
    known = [row["pipeline"] for row in rows]
    if name not in known:
        raise NotFound(no_pipeline(name, known, connection.place_if_private))
    return [row for row in rows if name in (row["pipeline"], row["next_of"])]


def _failures(connection: Connection, names: list[str]) -> list[Row]:
    values = {"names": names, "limit": MOST_FAILURE_GROUPS}
    return read_rows(connection, FAILURES, values) if names else []


def _grouped(rows: Sequence[Row], column: str) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row[column], []).append(row)
    return found


def _pipeline(row: Row, own: Sequence[Row]) -> PipelineState:
    pace = _pace(own)
    seconds = pace.seconds if pace else 0.0
    within = [each for each in own if each["ended_seconds_ago"] <= seconds]
    return PipelineState(
        row=row,
        pace=pace,
        minutes=_minutes(own),
        stages=StageSeconds.of(own),
        bottleneck=bottleneck(StageSeconds.of(within)),
    )


def _pace(steps: Sequence[Row]) -> Pace | None:
    return pace_of(
        [
            HistoryStep(
                records=each["records"],
                began_seconds_ago=each["began_seconds_ago"],
                ended_seconds_ago=each["ended_seconds_ago"],
            )
            for each in steps
        ]
    )


def _worker(
    row: Row, own: Sequence[Row], flying: Mapping[tuple[str, int], int], now: datetime
) -> WorkerState:
    if own:
        commit_seconds_ago = max(own[-1]["ended_seconds_ago"], 0.0)
    elif row["last_commit_at"]:
        commit_seconds_ago = (now - row["last_commit_at"]).total_seconds()
    else:
        commit_seconds_ago = None
    return WorkerState(
        row=row,
        pace=_pace(own),
        minutes=_minutes(own),
        stages=StageSeconds.of(own),
        in_flight=0 if row["stopped_at"] else flying.get((row["host"], row["pid"]), 0),
        commit_seconds_ago=commit_seconds_ago,
    )


def _minutes(steps: Sequence[Row]) -> list[int]:
    """Return the records of each of the last minutes, oldest first."""
    records = [0] * HISTORY_MINUTES
    for step in steps:
        minute = int(max(step["ended_seconds_ago"], 0.0) // 60)
        if minute < HISTORY_MINUTES:
            records[-1 - minute] += step["records"]
    return records


def _unindexed(progress: Sequence[Row], indexes: Sequence[Row]) -> list[str]:
    # A switch builds the indexes of a next generation.
    settled = (
        row["pipeline"]
        for row in progress
        if row["done"] and not row["pending"] and not row["next_of"]
    )
    usable = {each["pipeline"] for each in indexes if each["is_valid"]}
    return [name for name in settled if name not in usable]


# With fewer records to write, or a smaller index to vacuum, it does not matter what each costs.
MANY_RECORDS = 10_000
LARGE_INDEX_BYTES = 1 << 30

# So many of the rows are as good as all of them: each insert looks through the graph, and a vacuum
# goes through the index as a whole.
MANY_PENDING_SHARE = 0.05
MANY_DEAD_SHARE = 0.01


def _costly(progress: Sequence[Row], indexes: Sequence[Row]) -> list[Row]:
    pending = {row["pipeline"]: row["pending"] for row in progress}
    found = []
    for each in indexes:
        waits = pending.get(each["pipeline"], 0)
        is_written = waits >= max(MANY_RECORDS, MANY_PENDING_SHARE * each["live_rows"])
        is_cleared = (
            each["size_bytes"] >= LARGE_INDEX_BYTES
            and each["dead_rows"] >= MANY_DEAD_SHARE * each["live_rows"] > 0
        )
        if each["method"] == "hnsw" and each["is_valid"] and (is_written or is_cleared):
            found.append({**each, "pending": waits if is_written else 0})
    return found
