"""Building a vector index beside running workers: CREATE INDEX CONCURRENTLY, watched and undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psycopg
from psycopg import sql

from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.extension import vector_extension
from pgqueue_embed.db.locks import INDEX_LOCK
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import PgembedError, SetupError, UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search.index import index_name
from pgqueue_embed.vector_search.index_plan import IndexPlan

# Dropping waits, as building does, for every transaction that uses the table.
CLEAN_UP_SECONDS = 5.0


class BuildInProgress(UsageError):
    """Another session builds an index of the pipeline."""


def _ignore(_warning: str) -> None:
    pass


def build_index(
    connection: Connection,
    pipeline: Pipeline,
    plan: IndexPlan,
    *,
    on_warning: Callable[[str], None] = _ignore,
) -> str:
    """Build the index of `plan` while reads and writes go on, and return its name.

    `on_warning` gets what a person should know, such as a graph that outgrows its memory.

    An index that an interrupted build left invalid is replaced; interrupted itself, this build
    drops what it has made. Raises UsageError when the role does not own the table, the name is
    taken, another pgembed builds for this pipeline or a pooler is in between, SetupError when the
    server cannot do it.
    """
    connection.refuse_pooler("pgembed index")
    name = index_name(pipeline, plan.method, plan.quantize)
    connection.add_notice_handler(lambda notice: on_warning(_sentence(notice)))
    with _turn(connection, pipeline), build_settings(connection, plan):
        _drop_invalid(connection, pipeline, name)
        try:
            _create_with_retry(connection, pipeline, plan, name)
        except BaseException as error:
            _clean_up(connection, pipeline, name, on_warning)
            if isinstance(error, psycopg.Error):
                raise _explained(error, pipeline, name) from None
            raise
    return name


@contextmanager
def _turn(connection: Connection, pipeline: Pipeline) -> Iterator[None]:
    # Held by the session: CONCURRENTLY takes several transactions. It also keeps a build that
    # has lost its client, and goes on, from being taken for a leftover.
    key = INDEX_LOCK + pipeline.id
    mine = connection.value("select pg_try_advisory_lock(%s)", (key,))
    if not mine:
        raise BuildInProgress(
            f"an index of {pipeline.name} is being built already, here or on another machine;"
            " view pg_stat_progress_create_index tells how far it is"
        )
    try:
        yield
    finally:
        with suppress(psycopg.Error):
            connection.execute("select pg_advisory_unlock(%s)", (key,))


# The server looks for its client while it builds: else it would go on for one that has been killed,
# and refuse the next build meanwhile. From PostgreSQL 14, where the platform can tell.
LOOK_FOR_CLIENT = "set client_connection_check_interval = '5s'"

READ_SETTING = "select current_setting(%s)"
WRITE_SETTING = "select set_config(%s, %s, false)"


@contextmanager
def build_settings(connection: Connection, plan: IndexPlan) -> Iterator[None]:
    """Give the session, until it is left, the memory and the processes of `plan`."""
    # The build waits for transactions that are older than it, however long they take.
    settings = {
        "maintenance_work_mem": f"{plan.memory_megabytes}MB",
        "max_parallel_maintenance_workers": str(plan.parallel_workers),
        "statement_timeout": "0",
        "lock_timeout": "0",
    }
    before = {name: connection.value(READ_SETTING, (name,)) for name in settings}
    with suppress(psycopg.errors.UndefinedObject, psycopg.errors.InvalidParameterValue):
        connection.execute(LOOK_FOR_CLIENT)
    for name, value in settings.items():
        connection.execute(WRITE_SETTING, (name, value))
    try:
        yield
    finally:
        with suppress(psycopg.Error):
            for name, value in before.items():
                connection.execute(WRITE_SETTING, (name, value))


# Only an index of this name on this table, and only if it is of no use.
INVALID = """
select exists (
    select 1
    from pg_index
    join pg_class as index on index.oid = indexrelid
    join pg_class as target on target.oid = indrelid
    join pg_namespace on pg_namespace.oid = target.relnamespace
    where nspname = %s and target.relname = %s and index.relname = %s and not indisvalid
)
"""


def _drop_invalid(connection: Connection, pipeline: Pipeline, name: str) -> None:
    target = pipeline.target
    invalid = connection.value(INVALID, (target.schema, target.name, name))
    if invalid:
        index = sql.Identifier(target.schema, name)
        connection.execute(sql.SQL("drop index concurrently if exists {}").format(index))


def _sentence(notice: psycopg.errors.Diagnostic) -> str:
    parts = (notice.message_primary, notice.message_detail, notice.message_hint)
    return ". ".join(part.rstrip(".") for part in parts if part)


def _clean_up(
    connection: Connection, pipeline: Pipeline, name: str, on_warning: Callable[[str], None]
) -> None:
    """Drop what an interrupted build left, unless that has to wait for an open transaction."""
    try:
        connection.execute(f"set statement_timeout = {int(CLEAN_UP_SECONDS * 1000)}")
        _drop_invalid(connection, pipeline, name)
    except psycopg.Error:
        on_warning(f"index {name} is left behind, unusable; the next build replaces it")


def _create_with_retry(
    connection: Connection, pipeline: Pipeline, plan: IndexPlan, name: str
) -> None:
    try:
        _create(connection, pipeline, plan, name)
    except (psycopg.errors.DiskFull, psycopg.errors.OutOfMemory) as error:
        # Parallel builders share their memory through /dev/shm, which is small in a container.
        # It is asked for before anything is built.
        if not (error.diag.source_file or "").startswith("dsm"):
            raise
        _drop_invalid(connection, pipeline, name)
        connection.execute("set max_parallel_maintenance_workers = 0")
        _create(connection, pipeline, plan, name)


CREATE = """
create index concurrently {name} on {target}
using {method} ({element}) with ({parameters})
"""


def _create(connection: Connection, pipeline: Pipeline, plan: IndexPlan, name: str) -> None:
    query = sql.SQL(CREATE).format(
        name=sql.Identifier(name),
        target=pipeline.target.identifier,
        method=sql.Identifier(plan.method),
        element=element(connection, pipeline, plan.quantize),
        parameters=parameters(plan),
    )
    connection.execute(query)


ELEMENTS = {
    "none": "{embedding} {schema}.{vector_type_cosine_ops}",
    "halfvec": "({embedding}::{schema}.halfvec({dimensions})) {schema}.halfvec_cosine_ops",
    "binary": "({schema}.binary_quantize({embedding})::bit({dimensions})) {schema}.bit_hamming_ops",
}


def element(connection: Connection, pipeline: Pipeline, quantize: str) -> sql.Composable:
    """Return what is indexed of a row, with its operator class."""
    return sql.SQL(ELEMENTS[quantize]).format(
        embedding=sql.Identifier(pipeline.spec.columns.embedding),
        schema=sql.Identifier(vector_extension(connection).schema),
        vector_type_cosine_ops=sql.Identifier(f"{pipeline.spec.vector_type}_cosine_ops"),
        dimensions=sql.Literal(pipeline.dimensions),
    )


def parameters(plan: IndexPlan) -> sql.Composable:
    """Return the WITH options of an index, as SQL."""
    return sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(parameter), sql.Literal(value))
        for parameter, value in plan.parameters.items()
    )


def _explained(error: psycopg.Error, pipeline: Pipeline, name: str) -> PgembedError:
    reason = first_line(error)
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return UsageError(
            f"this role may not index {pipeline.target} ({reason}); build as the table's owner"
        )
    if isinstance(error, psycopg.errors.DuplicateTable):
        return UsageError(
            f"{pipeline.target.schema}.{name} exists already and is no cosine index of these"
            " vectors; rename or drop it"
        )
    if isinstance(error, psycopg.errors.UndefinedTable):
        return UsageError(f"the target table {pipeline.target} is gone ({reason})")
    if isinstance(error, psycopg.errors.ProgramLimitExceeded):
        return SetupError(f"the server refused: {reason}; give more --memory or fewer --lists")
    return SetupError(f"the index was not built: {reason}")


@dataclass(frozen=True, kw_only=True)
class BuildProgress:
    """How far a build is; `done` and `total` count what the phase counts, 0 where it does not."""

    phase: str
    done: int
    total: int
    waits_for_pid: int | None


# Blocks are counted where the table is read, tuples where what was read is sorted or written.
PROGRESS = """
select
    phase,
    case
        when lockers_total > lockers_done then lockers_done
        when tuples_total > 0 then tuples_done
        else blocks_done
    end,
    case
        when lockers_total > lockers_done then lockers_total
        when tuples_total > 0 then tuples_total
        else blocks_total
    end,
    nullif(current_locker_pid, 0)
from pg_stat_progress_create_index
join pg_class on pg_class.oid = relid
join pg_namespace on pg_namespace.oid = relnamespace
where datname = current_database() and nspname = %s and relname = %s
"""


def read_progress(connection: Connection, pipeline: Pipeline) -> BuildProgress | None:
    """Return how far a build on the pipeline's target table is, or None when there is none."""
    target = pipeline.target
    row = connection.execute(PROGRESS, (target.schema, target.name)).fetchone()
    if row is None:
        return None
    return BuildProgress(phase=row[0], done=row[1], total=row[2], waits_for_pid=row[3])
