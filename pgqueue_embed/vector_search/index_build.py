"""Building a vector index beside running workers: CREATE INDEX CONCURRENTLY, watched and undone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import MappingProxyType

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.extension import vector_extension
from pgqueue_embed.db.locks import INDEX_LOCK, in_short_waits
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import PgembedError, SetupError, UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.target.parts import LEAVES, index_whole, is_partitioned, leaves
from pgqueue_embed.target.unusable_indexes import CLEAN_UP_SECONDS
from pgqueue_embed.vector_search.index import index_name
from pgqueue_embed.vector_search.index_plan import IndexPlan


class BuildInProgress(UsageError):
    """Another session builds an index of the pipeline."""


def ignore(_warning: str) -> None:
    """Drop a warning."""


def build_index(
    connection: Connection,
    pipeline: Pipeline,
    plan: IndexPlan,
    *,
    on_warning: Callable[[str], None] = ignore,
) -> str:
    """Build the index of `plan` while reads and writes go on, and return its name.

    `on_warning` gets what a person should know, such as a graph that outgrows its memory.

    An index that an interrupted build left invalid is replaced; interrupted itself, this build
    drops what it has made. Of a partitioned table it is built part by part, and what an interrupted
    build has made of parts is kept. Raises UsageError when the role does not own the table, the
    name is taken, another pgembed builds for this pipeline or a pooler is in between, SetupError
    when the server cannot do it.
    """
    build = VectorBuild(connection, pipeline, on_warning, plan)
    with build_settings(connection, plan):
        return build_once(build)


def build_once(build: Build) -> str:
    """Do `build` unless another session builds for the pipeline; returns the index's name."""
    connection, pipeline = build.connection, build.pipeline
    connection.refuse_pooler("pgembed index")
    connection.add_notice_handler(lambda notice: build.on_warning(_sentence(notice)))
    name = build.name_of(pipeline.target)
    with turn(connection, pipeline):
        if is_partitioned(connection, pipeline.target):
            build.of_parts(name)
        else:
            build.of_table(pipeline.target, name)
    return name


@contextmanager
def turn(connection: Connection, pipeline: Pipeline) -> Iterator[None]:
    """Let no other session build an index of the pipeline meanwhile; raises BuildInProgress."""
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


# The server checks on its client while it builds: else it would go on for one that has been killed,
# and refuse the next build meanwhile. From PostgreSQL 14, where the platform can tell.
CHECK_CLIENT = "set client_connection_check_interval = '5s'"

READ_SETTING = "select current_setting(%s)"
WRITE_SETTING = "select set_config(%s, %s, false)"


@contextmanager
def build_settings(connection: Connection, plan: IndexPlan) -> Iterator[None]:
    """Give the session, until it is left, the memory and the processes of `plan`."""
    settings = {
        "maintenance_work_mem": f"{plan.memory_megabytes}MB",
        "max_parallel_maintenance_workers": str(plan.parallel_workers),
    }
    with long_statements(connection, settings):
        yield


@contextmanager
def long_statements(
    connection: Connection, more: Mapping[str, str] = MappingProxyType({})
) -> Iterator[None]:
    """Let the session's statements take their time, until it is left, with settings `more`."""
    # The build waits for transactions that are older than it, however long they take.
    settings = {**more, "statement_timeout": "0", "lock_timeout": "0"}
    before = {name: connection.value(READ_SETTING, (name,)) for name in settings}
    with suppress(psycopg.errors.UndefinedObject, psycopg.errors.InvalidParameterValue):
        connection.execute(CHECK_CLIENT)
    for name, value in settings.items():
        connection.execute(WRITE_SETTING, (name, value))
    try:
        yield
    finally:
        with suppress(psycopg.Error):
            for name, value in before.items():
                connection.execute(WRITE_SETTING, (name, value))


@dataclass(frozen=True)
class Build(ABC):
    """Builds an index, of a table or of each part of it, in the session's turn."""

    connection: Connection
    pipeline: Pipeline
    on_warning: Callable[[str], None]

    @abstractmethod
    def name_of(self, table: Table) -> str:
        """Return the name of the index of the target, or of a part of it."""

    @abstractmethod
    def parts_without(self) -> list[Table]:
        """Return the parts of the target that lack their index."""

    @abstractmethod
    def creation(self, table: Table, name: str, create: sql.SQL) -> sql.Composed:
        """Return the statement, beginning with `create`, that builds the index of one table."""

    def of_table(self, table: Table, name: str, *, replaces: bool = False) -> None:
        """Build the index of one table; one of that name that is of no use goes first.

        If it `replaces` one, that goes whatever it is.
        """
        self._drop(table, name, valid_too=replaces)
        try:
            self._create_with_retry(table, name)
        except BaseException as error:
            self._clean_up(table, name)
            if isinstance(error, psycopg.Error):
                raise build_error(error, table, name) from None
            raise

    def of_parts(self, name: str) -> None:
        """Build the index of each part that lacks one, and that of the whole out of them."""
        self._in_short_waits(lambda: self._drop_whole(name), name)
        while lacking := self.parts_without():
            for part in lacking:
                self.of_table(part, self.name_of(part), replaces=True)
        self._in_short_waits(lambda: self._join_parts(name), name)

    def _in_short_waits(self, change: Callable[[], None], name: str) -> None:
        table = self.pipeline.target
        try:
            in_short_waits(self.connection, change, table=table)
        except psycopg.Error as error:
            raise build_error(error, table, name) from None

    def _drop_whole(self, name: str) -> None:
        """Drop the index of the whole, and what it has of parts, if it is of no use."""
        table = self.pipeline.target
        if self._is_there(table, name, valid_too=False):
            index = sql.Identifier(table.schema, name)
            self.connection.execute(sql.SQL("drop index {}").format(index))

    def _join_parts(self, name: str) -> None:
        """Make the index of the whole, which takes the indexes of the parts as its own."""
        table = self.pipeline.target
        lock = sql.SQL("lock table only {} in share mode")
        self.connection.execute(lock.format(table.identifier))
        if self.parts_without():
            raise UsageError(f"{table} has just got another part; build again")
        index_whole(self.connection, table, self.creation(table, name, sql.SQL("create index")))

    def _is_there(self, table: Table, name: str, *, valid_too: bool) -> bool:
        values = (table.quoted, name, valid_too)
        return bool(self.connection.value(INDEX_IS_THERE, values))

    def _drop(self, table: Table, name: str, *, valid_too: bool = False) -> None:
        if self._is_there(table, name, valid_too=valid_too):
            index = sql.Identifier(table.schema, name)
            self.connection.execute(sql.SQL("drop index concurrently if exists {}").format(index))

    def _clean_up(self, table: Table, name: str) -> None:
        """Drop what an interrupted build left, unless that has to wait for an open transaction."""
        try:
            self.connection.execute(f"set statement_timeout = {int(CLEAN_UP_SECONDS * 1000)}")
            self._drop(table, name)
        except psycopg.Error:
            self.on_warning(
                f"index {name} may be left behind, unusable; the next build replaces it"
            )

    def _create_with_retry(self, table: Table, name: str) -> None:
        concurrently = sql.SQL("create index concurrently")
        try:
            self._create(table, name, concurrently)
        except (psycopg.errors.DiskFull, psycopg.errors.OutOfMemory) as error:
            # Parallel builders share their memory through /dev/shm, which is small in a container.
            # It is asked for before anything is built.
            if not (error.diag.source_file or "").startswith("dsm"):
                raise
            self._drop(table, name)
            self.connection.execute("set max_parallel_maintenance_workers = 0")
            self._create(table, name, concurrently)

    def _create(self, table: Table, name: str, create: sql.SQL) -> None:
        self.connection.execute(self.creation(table, name, create))


@dataclass(frozen=True)
class VectorBuild(Build):
    """Builds the vector index of `plan`."""

    plan: IndexPlan

    def name_of(self, table: Table) -> str:
        """Return the name of that index of the target, or of a part of it."""
        part = None if table == self.pipeline.target else table
        return index_name(self.pipeline, self.plan.method, self.plan.quantize, part)

    def parts_without(self) -> list[Table]:
        """Return the parts that lack one of that kind."""
        values = {
            "pipeline": self.pipeline.name,
            "method": self.plan.method,
            "quantize": self.plan.quantize,
            "parameters": Jsonb({key: str(value) for key, value in self.plan.parameters.items()}),
            "usual": Jsonb(USUAL[self.plan.method]),
        }
        return leaves(self.connection, self.pipeline.target, LACKS_INDEX, values)

    def creation(self, table: Table, name: str, create: sql.SQL) -> sql.Composed:
        """Return the statement that builds that of one table."""
        return sql.SQL(CREATE).format(
            create=create,
            name=sql.Identifier(name),
            table=table.identifier,
            method=sql.Identifier(self.plan.method),
            element=element(self.connection, self.pipeline, self.plan.quantize),
            parameters=parameters(self.plan),
        )


# An index of this name on this table, of use or not; those of parts of another index stay.
INDEX_IS_THERE = """
select exists (
    select
    from pg_index
    join pg_class on pg_class.oid = indexrelid
    where indrelid = to_regclass(%s)
        and relname = %s
        and not relispartition
        and (%s or not indisvalid)
)
"""

CREATE = """
{create} {name} on {table}
using {method} ({element}) with ({parameters})
"""

# What an index has that was made without a word about it; pgvector README, "HNSW" and "IVFFlat".
USUAL = {"hnsw": {"m": "16", "ef_construction": "64"}, "ivfflat": {"lists": "100"}}

LACKS_INDEX = """
not exists (
    select
    from pgembed.vector_indexes
    where pipeline = %(pipeline)s
        and part = format('%%I.%%I', nspname, relname)
        and is_valid
        and method = %(method)s
        and quantize = %(quantize)s
        and %(usual)s || parameters = %(parameters)s
)
"""


def _sentence(notice: psycopg.errors.Diagnostic) -> str:
    parts = (notice.message_primary, notice.message_detail, notice.message_hint)
    return ". ".join(part.rstrip(".") for part in parts if part)


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


def build_error(error: psycopg.Error, table: Table, name: str) -> PgembedError:
    """Return what a build means that has failed with `error`, in one line."""
    reason = first_line(error)
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return UsageError(f"this role may not index {table} ({reason}); build as the table's owner")
    if isinstance(error, psycopg.errors.DuplicateTable):
        return UsageError(
            f"{table.schema}.{name} exists already and is no cosine index of these"
            " vectors; rename or drop it"
        )
    if isinstance(error, psycopg.errors.UndefinedTable):
        return UsageError(f"the target table {table} is gone ({reason})")
    if isinstance(error, psycopg.errors.ProgramLimitExceeded):
        return SetupError(f"the server refused: {reason}; give more --memory or fewer --lists")
    return SetupError(f"the index was not built: {reason}")


@dataclass(frozen=True, kw_only=True)
class BuildProgress:
    """How far a build is; `done` and `total` count what the phase counts, 0 where it does not.

    It is at one `part` of the table's `parts`, of 1 if it has none.
    """

    phase: str
    done: int
    total: int
    waits_for_pid: int | None
    part: int = 1
    parts: int = 1


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
    nullif(current_locker_pid, 0),
    (select count(*) from leaf as earlier where earlier.relid <= leaf.relid),
    (select count(*) from leaf)
from pg_stat_progress_create_index
join leaf using (relid)
where datname = current_database()
"""


def read_build_progress(connection: Connection, pipeline: Pipeline) -> BuildProgress | None:
    """Return how far a build on the pipeline's target table is, or None when there is none."""
    row = connection.execute(LEAVES + PROGRESS, {"table": pipeline.target.quoted}).fetchone()
    if row is None:
        return None
    names = ("phase", "done", "total", "waits_for_pid", "part", "parts")
    return BuildProgress(**dict(zip(names, row, strict=True)))
