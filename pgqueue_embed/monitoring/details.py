"""A closer look than a snapshot: at one pipeline, at older events. By the public views alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import NotFound
from pgqueue_embed.monitoring.bottleneck import StageSeconds
from pgqueue_embed.monitoring.snapshot import Row, read_rows
from pgqueue_embed.pipeline.catalog import no_pipeline

QUARTERS = 96
QUARTER_SECONDS = 900


@dataclass(frozen=True, kw_only=True)
class Details:
    """How a pipeline is set up, what it did in the last day, and its vector indexes.

    `settings` has the rows of pgembed.settings of the pipeline and of its next generation,
    `indexes` those of pgembed.vector_indexes. `records` are what was settled in each of the last
    QUARTERS quarters of an hour, oldest first, `stages` the seconds that all of it took.
    """

    settings: Sequence[Row]
    indexes: Sequence[Row]
    records: Sequence[int]
    stages: StageSeconds

    @property
    def recall(self) -> float | None:
        """Which share of the nearest chunks searches by an index found when that was measured."""
        measured = [each["measured_recall"] for each in self.indexes if each["is_valid"]]
        return next((each for each in measured if each is not None), None)


NAMES = "select pipeline from pgembed.settings order by pipeline"

READ_SETTINGS = """
select *
from pgembed.settings
where %(name)s in (pipeline, next_of)
order by next_of nulls first
"""

INDEXES = """
select *
from pgembed.vector_indexes
where pipeline = %(name)s
order by index_name
"""

# Quarters of an hour that end now: the last one is whole.
DAY = """
select
    (extract(epoch from statement_timestamp() - minute) / %(seconds)s)::integer as quarters_ago,
    sum(records)::bigint as records,
    sum(read_seconds) as read_seconds,
    sum(chunk_seconds) as chunk_seconds,
    sum(embed_seconds) as embed_seconds,
    sum(write_seconds) as write_seconds,
    sum(lock_seconds) as lock_seconds
from pgembed.history
where pipeline = %(name)s
group by 1
"""


def read_details(connection: Connection, name: str) -> Details:
    """Return a closer look at the pipeline `name`; raises NotFound when there is none."""
    values = {"name": name, "seconds": QUARTER_SECONDS}
    settings = read_rows(connection, READ_SETTINGS, values)
    if not settings:
        known = [row["pipeline"] for row in read_rows(connection, NAMES, {})]
        raise NotFound(no_pipeline(name, known, connection.place_if_private))
    day = read_rows(connection, DAY, values)
    return Details(
        settings=settings,
        indexes=read_rows(connection, INDEXES, values),
        records=_by_quarter(day),
        stages=StageSeconds.of(day),
    )


def _by_quarter(day: Sequence[Row]) -> list[int]:
    found = [0] * QUARTERS
    for row in day:
        if 0 <= row["quarters_ago"] < QUARTERS:
            found[-1 - row["quarters_ago"]] = row["records"]
    return found


EVENTS = """
select *
from pgembed.events
where (%(name)s::text is null or pipeline = %(name)s)
    and (%(before)s::timestamptz is null or happened_at < %(before)s)
order by happened_at desc
limit %(limit)s
"""


def read_events(
    connection: Connection, name: str | None = None, *, before: datetime | None = None, limit: int
) -> list[Row]:
    """Return rows of pgembed.events, the newest first: of pipeline `name`, or of everything."""
    return read_rows(connection, EVENTS, {"name": name, "before": before, "limit": limit})
