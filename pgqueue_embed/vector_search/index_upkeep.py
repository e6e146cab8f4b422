"""An index that has lost recall is built anew, in place, while searches and writes go on.

Vectors that come and go leave a graph whose paths lead nowhere. Once half as many chunks were
written as there are, since the index was built or checked, what searches find by it is measured
against exact search.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import psycopg
from psycopg import sql

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.target.parts import LEAVES
from pgqueue_embed.target.unusable_indexes import CLEAN_UP_SECONDS
from pgqueue_embed.vector_search.evaluation import draw_queries, searched_recall
from pgqueue_embed.vector_search.index import (
    VectorIndex,
    count_vectors,
    declared,
    plan,
    vector_indexes,
)
from pgqueue_embed.vector_search.index_build import (
    build_error,
    build_settings,
    turn,
)
from pgqueue_embed.vector_search.index_plan import IndexOptions

CHANGED_SHARE = 0.5

# Fewer vectors than these are searched exactly in no time.
LEAST_CHUNKS = 10_000

# The mean of so many searches for 10 is sure to about a hundredth.
SAMPLE = 50
SEED = 1
K = 10

# What an index should find where it was not measured, and how much less than what was measured
# may be chance.
USUAL_RECALL = 0.95
CHANCE = 0.03

WRITTEN = """
select
    coalesce((select sum(chunks) from pgembed.batches where pipeline_id = pipelines.id), 0)::bigint,
    index_checked_chunks,
    case when pgembed.measured_effort(pipelines, %(quantize)s) is not null
        then ef_search_recall end
from pgembed.pipelines
where id = %(id)s
"""

MAY_NOTE = """
select has_column_privilege('pgembed.pipelines', 'index_checked_chunks', 'update')
    and pg_has_role(relowner, 'usage')
from pg_class
where oid = to_regclass(%s)
"""


def index_to_check(connection: Connection, pipeline: Pipeline) -> VectorIndex | None:
    """Return the declared index if so much was written since it was checked; None else.

    And where this role could not build it anew, or not note that it has checked.
    """
    index = _declared_index(connection, pipeline)
    if index is None or index.method != "hnsw":
        return None
    written, checked, _ = _written(connection, pipeline, index)
    if checked is not None and written - checked < LEAST_CHUNKS:
        return None
    if not connection.value(MAY_NOTE, (pipeline.target.quoted,)):
        return None
    vectors = count_vectors(connection, pipeline)
    since = written if checked is None else written - checked
    return index if vectors >= LEAST_CHUNKS and since >= CHANGED_SHARE * vectors else None


def check_index(
    connection: Connection,
    pipeline: Pipeline,
    index: VectorIndex,
    *,
    on_fallen: Callable[[float, float], None] = lambda _recall, _wanted: None,
    on_warning: Callable[[str], None] = lambda _warning: None,
) -> float | None:
    """Measure what searches find by `index`, and build it anew where that is too little.

    Returns the share that was found, 0 to 1, None if nothing was to be measured; `on_fallen` gets
    it, with what is wanted, before the build. Raises BuildInProgress while another index is built.
    """
    connection.refuse_pooler("a worker that builds an index")
    with turn(connection, pipeline):
        if index_to_check(connection, pipeline) is None:
            return None  # another session has just done so
        written, _, kept = _written(connection, pipeline, index)
        _drop_left_behind(connection, pipeline)
        queries = draw_queries(connection, pipeline, SAMPLE, SEED)
        recall = searched_recall(connection, pipeline, queries, k=K) if queries else None
        wanted = USUAL_RECALL if kept is None else kept - CHANCE
        if recall is not None and recall < wanted:
            on_fallen(recall, wanted)
            _rebuild(connection, pipeline, index, on_warning)
        note_checked(connection, pipeline, written)
        return recall


NOTE = """
update pgembed.pipelines
set index_checked_chunks = coalesce(
    %(written)s, (select sum(chunks) from pgembed.batches where pipeline_id = pipelines.id), 0
)
where id = %(id)s
"""


def note_checked(connection: Connection, pipeline: Pipeline, written: int | None = None) -> None:
    """Note that the index is good for what was written so far, where this role may."""
    with suppress(psycopg.errors.InsufficientPrivilege):
        connection.execute(NOTE, {"id": pipeline.id, "written": written})


def _declared_index(connection: Connection, pipeline: Pipeline) -> VectorIndex | None:
    options = declared(pipeline.spec)
    for each in vector_indexes(connection, pipeline):
        if options is not None and each.valid and each.method == options.method:
            return each
    return None


def _written(
    connection: Connection, pipeline: Pipeline, index: VectorIndex
) -> tuple[int, int | None, float | None]:
    values = {"id": pipeline.id, "quantize": index.quantize}
    written, checked, kept = connection.row(WRITTEN, values)
    return written, checked, kept


# An index of a table in parts is one of each part.
LEAVES_OF_INDEX = """
select nspname, relname
from (
    select relid::oid as oid from pg_partition_tree(to_regclass(%(index)s)) where isleaf
    union
    select oid from pg_class where oid = to_regclass(%(index)s) and relkind = 'i'
) as leaf
join pg_class on pg_class.oid = leaf.oid
join pg_namespace on pg_namespace.oid = relnamespace
order by leaf.oid
"""


def _rebuild(
    connection: Connection,
    pipeline: Pipeline,
    index: VectorIndex,
    on_warning: Callable[[str], None],
) -> None:
    given = {name: int(value) for name, value in index.parameters.items()}
    options = IndexOptions(method=index.method, quantize=index.quantize, **given)
    place = Table(schema=pipeline.target.schema, name=index.name)
    with build_settings(connection, plan(connection, pipeline, options)):
        for schema, name in connection.execute(LEAVES_OF_INDEX, {"index": place.quoted}).fetchall():
            rebuild = sql.SQL("reindex index concurrently {}")
            try:
                connection.execute(rebuild.format(sql.Identifier(schema, name)))
            except BaseException as error:
                _clean_up(connection, pipeline, on_warning)
                if isinstance(error, psycopg.Error):
                    raise build_error(error, pipeline.target, name) from None
                raise


# What REINDEX CONCURRENTLY leaves of one that it was to build, or to drop.
LEFT_BEHIND = """
select nspname, index.relname
from leaf
join pg_index on indrelid = relid
join pg_class as index on index.oid = indexrelid
join pg_am on pg_am.oid = index.relam
join pg_namespace on pg_namespace.oid = index.relnamespace
where not indisvalid and amname = 'hnsw' and index.relname ~ '_cc(new|old)[0-9]*$'
"""


def _drop_left_behind(connection: Connection, pipeline: Pipeline) -> None:
    values = {"table": pipeline.target.quoted}
    for schema, name in connection.execute(LEAVES + LEFT_BEHIND, values).fetchall():
        drop = sql.SQL("drop index concurrently if exists {}")
        connection.execute(drop.format(sql.Identifier(schema, name)))


def _clean_up(
    connection: Connection, pipeline: Pipeline, on_warning: Callable[[str], None]
) -> None:
    try:
        connection.execute(f"set statement_timeout = {int(CLEAN_UP_SECONDS * 1000)}")
        _drop_left_behind(connection, pipeline)
    except psycopg.Error:
        on_warning(
            f"an unusable index of {pipeline.name} may be left behind; the next look drops it"
        )
