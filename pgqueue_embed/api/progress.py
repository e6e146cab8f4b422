"""How far a pipeline is, as a value."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime, timedelta

from psycopg import sql

from pgqueue_embed.connect import Connection
from pgqueue_embed.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One row of the view pgembed.progress; counts are records, rates are of the last minute.

    `state` is active or paused, `state_reason` why it is paused. `done` are embedded or empty,
    `dead` were given up on, `pending` wait or are in flight; `eta` is None while nothing moves.

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
