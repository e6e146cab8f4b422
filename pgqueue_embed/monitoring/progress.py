"""One pipeline's row of pgembed.progress, as an object of the Python interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any


def is_complete(row: Mapping[str, Any]) -> bool:
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
        """Whether all of the source is done, as far as can be told without reading it."""
        return is_complete(vars(self))

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Progress:
        """Return a row of the view, by column name, as an object."""
        values = {each.name: row[each.name] for each in fields(cls)}
        return cls(**{**values, **{rate: float(values[rate]) for rate in _RATES}})


_RATES = ("percent", "records_per_second", "chunks_per_second", "tokens_per_second")
