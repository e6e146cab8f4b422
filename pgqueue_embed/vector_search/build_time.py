"""The time that a build will take: a sample is built, and timed, in memory and on disk."""

from __future__ import annotations

import math
import time

import psycopg
from psycopg import sql

from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.target import target_of
from pgqueue_embed.vector_search.index_build import element, parameters
from pgqueue_embed.vector_search.index_plan import IndexPlan

SAMPLE_ROWS = 2_000

# The least that PostgreSQL takes: most of the sample's graph is then built on disk.
LEAST_MEMORY_MEGABYTES = 1

DRAW = """
create temporary table pgembed_sample on commit drop as
select {embedding} from {rows} as target where {embedding} is not null limit %(limit)s
"""
CREATE = """
create index pgembed_sampled on pg_temp.pgembed_sample
using {method} ({element}) with ({parameters})
"""


def estimated_build_seconds(
    connection: Connection, pipeline: Pipeline, plan: IndexPlan
) -> float | None:
    """Return about how long the HNSW index of `plan` takes, or None where no sample can be made.

    The time of a vector grows with the logarithm of how many there are; that of the sample on disk
    is one of pages that the server has at hand, so that the whole may well take longer.
    """
    try:
        with connection.transaction(force_rollback=True):
            connection.execute("set local statement_timeout = 0")
            connection.execute("set local client_min_messages = warning")
            names = {
                "embedding": sql.Identifier(pipeline.spec.columns.embedding),
                "rows": target_of(pipeline).vector_rows,
            }
            drawn = connection.execute(sql.SQL(DRAW).format(**names), {"limit": SAMPLE_ROWS})
            sampled = drawn.rowcount
            in_memory = _timed(connection, pipeline, plan, plan.memory_megabytes)
            on_disk = _timed(connection, pipeline, plan, LEAST_MEMORY_MEGABYTES)
    except psycopg.Error:
        return None
    if sampled < 2:
        return None
    share = min(1.0, plan.memory_megabytes / plan.needed_megabytes)
    seconds = (share * in_memory + (1 - share) * on_disk) / sampled
    growth = max(1.0, math.log(plan.part_rows) / math.log(sampled))
    return plan.rows * seconds * growth / (1 + plan.parallel_workers)


def _timed(
    connection: Connection, pipeline: Pipeline, plan: IndexPlan, memory_megabytes: int
) -> float:
    connection.execute(
        "select set_config('maintenance_work_mem', %s, true)", (f"{memory_megabytes}MB",)
    )
    query = sql.SQL(CREATE).format(
        method=sql.Identifier(plan.method),
        element=element(connection, pipeline, plan.quantize),
        parameters=parameters(plan),
    )
    started = time.monotonic()
    connection.execute(query)
    took = time.monotonic() - started
    connection.execute("drop index pg_temp.pgembed_sampled")
    return took
