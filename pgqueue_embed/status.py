"""The data of `pgembed status`: progress, workers and the next steps for a person."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from psycopg import sql
from psycopg.rows import dict_row

from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.vector_search.index import indexed_pipelines

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Status:
    """Rows of pgembed.progress and pgembed.worker_status by column name.

    `place` says where that is, if it is the private server. `unindexed` names the pipelines that
    have vectors, nothing pending and no vector index; `now` is the database's clock.
    """

    place: str
    now: datetime
    pipelines: list[Row]
    workers: list[Row]
    unindexed: list[str]


def read_status(connection: Connection, name: str | None = None) -> Status:
    """Return how the pipeline `name`, or every pipeline, stands, with its workers.

    With a pipeline comes its next generation. Raises UsageError for an unknown name.
    """
    pipelines = _rows(connection, PROGRESS, {})
    if name is not None:
        known = [row["pipeline"] for row in pipelines]
        _check_known(connection, name, known)
        pipelines = [row for row in pipelines if name in (row["pipeline"], row["next_of"])]
    shown = [row["pipeline"] for row in pipelines]
    # A switch builds the indexes of a next generation.
    settled = [
        row["pipeline"]
        for row in pipelines
        if row["done"] and not row["pending"] and not row["next_of"]
    ]
    indexed = indexed_pipelines(connection) if settled else set()
    return Status(
        place=connection.place_if_private,
        now=_rows(connection, "select clock_timestamp() as now", {})[0]["now"],
        pipelines=pipelines,
        workers=_rows(connection, WORKERS, {"names": name and shown}),
        unindexed=[each for each in settled if each not in indexed],
    )


PROGRESS = "select * from pgembed.progress order by pipeline"

# A stopped worker is news for a while; a silent one (its lid is closed, or it crashed) for longer.
WORKERS = """
select worker_status.*
from pgembed.worker_status
join pgembed.workers on workers.id = worker_status.worker_id
where coalesce(
        workers.stopped_at > clock_timestamp() - interval '10 minutes',
        workers.heartbeat_at > clock_timestamp() - interval '1 day'
    )
    and (
        %(names)s::text[] is null
        or exists (
            select
            from pgembed.pipelines
            where name = any (%(names)s)
                and (id = any (workers.pipeline_ids) or workers.unserved ? id::text)
        )
    )
order by worker_status.state = 'stopped', worker_status.host, worker_status.pid
"""


def _rows(connection: Connection, query: str, values: Row) -> list[Row]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, values).fetchall()


def _check_known(connection: Connection, name: str, known: list[str]) -> None:
    if name not in known:
        names = ", ".join(known) or "none yet; make one: pgembed create"
        raise UsageError(
            f"there is no pipeline '{name}'{connection.place_if_private}; there is {names}"
        )


def is_complete(row: Row) -> bool:
    """Return whether a row of pgembed.progress says that all of the source is done.

    An empty queue alone does not: records were given up on, rows have never been queued.
    """
    settled = row["total"] and not row["pending"] and not row["dead"]
    return bool(settled) and row["never_queued"] == 0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One row of the view pgembed.progress; counts are records, rates are of the last minute.

    `state` is active or paused, `state_reason` why it is paused. `done` are embedded or empty,
    `dead` were given up on, `pending` wait or are in flight: of these, `pending_new` are in none of
    the others yet, and `pending_changed` wait again. `percent` of all is done and waits for
    nothing. `never_queued` estimates how many rows the source has besides, None where the server's
    statistics do not tell. `eta` is None while nothing moves.

    Example::

        progress = database.pipeline("reports").progress()
        print(f"{progress.done:,} of {progress.total:,}, {progress.dead} failed")
    """

    pipeline: str
    state: str
    state_reason: str | None
    total: int
    done: int
    pending: int
    in_flight: int
    retrying: int
    dead: int
    percent: float
    records_per_second: float
    chunks_per_second: float
    tokens_per_second: float
    eta: timedelta | None
    live_workers: int
    last_commit_at: datetime | None
    oldest_pending_at: datetime | None
    pending_new: int
    pending_changed: int
    never_queued: int | None

    @property
    def is_complete(self) -> bool:
        """Whether all of the source is done, as far as anybody can tell without reading it."""
        return is_complete(vars(self))


_RATES = ("percent", "records_per_second", "chunks_per_second", "tokens_per_second")


def read_progress(connection: Connection, name: str) -> Progress:
    """Return how far the pipeline called `name` is; raises UsageError when there is none."""
    columns = [each.name for each in fields(Progress)]
    query = sql.SQL("select {} from pgembed.progress where pipeline = %s").format(
        sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    row = connection.execute(query, (name,)).fetchone()
    if row is None:
        raise UsageError(f"there is no pipeline '{name}'")
    values = dict(zip(columns, row, strict=True))
    return Progress(**{**values, **{rate: float(values[rate]) for rate in _RATES}})
