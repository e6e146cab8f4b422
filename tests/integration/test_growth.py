"""Ten times the work reads about ten times the rows, and not a hundred times as many."""

from __future__ import annotations

import pytest

from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue import dead_letters
from pgqueue_embed.queue import enqueue as scan
from tests.support.corpus import make_source
from tests.support.growing import CASES, POLLS, Case
from tests.support.pipelines import make_pipeline
from tests.support.rows import one_value

SMALL = 1_000
TIMES = 10
MOST_GROWTH = 12

# In this transaction, those of indexes too: whatever a plan looks at, whether it keeps it or not.
ROWS_READ = """
select sum(pg_stat_get_xact_tuples_returned(oid))::bigint
from pg_class
where relnamespace = 'pgembed'::regnamespace and relkind in ('r', 'i')
"""


@pytest.fixture
def pipeline(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    make_source(connection)
    connection.execute("alter table pgembed.records set (autovacuum_enabled = off)")
    # Several slices, whatever they look at more than once.
    monkeypatch.setattr(scan, "SLICE_RECORDS", SMALL // 4)
    monkeypatch.setattr(scan, "FIRST_SLICE_RECORDS", SMALL // 4)
    defaults = {**(dead_letters.retry.__kwdefaults__ or {}), "slice_records": SMALL // 4}
    monkeypatch.setattr(dead_letters.retry, "__kwdefaults__", defaults)
    return make_pipeline(connection)


def rows_read(connection: Connection, pipeline: Pipeline, case: Case, records: int) -> int:
    """Return how many rows of schema pgembed `case` reads."""
    connection.execute(
        "truncate public.reports, pgembed.records, pgembed.work, pgembed.batches, pgembed.workers,"
        " pgembed.scans"
    )
    case.fill(connection, pipeline, records)
    with connection.transaction():
        before = one_value(connection, ROWS_READ)
        case.run(connection, pipeline)
        return int(one_value(connection, ROWS_READ) - before)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ten_times_the_work_reads_about_ten_times_the_rows(
    connection: Connection, pipeline: Pipeline, case: Case
) -> None:
    small, large = (rows_read(connection, pipeline, case, n) for n in (SMALL, TIMES * SMALL))
    assert large <= MOST_GROWTH * max(small, SMALL), f"{large:,} after {small:,}"


def test_what_is_delayed_is_not_stepped_over(connection: Connection, pipeline: Pipeline) -> None:
    (case,) = (each for each in CASES if "idle polls" in each.name)
    # A few of each poll, of the pipeline's own row for example.
    assert rows_read(connection, pipeline, case, SMALL) < 10 * POLLS
