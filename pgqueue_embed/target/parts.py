"""The parts of a partitioned target table: `<table>_0`, `<table>_1`, and so on.

A source that has the vectors in a column may be partitioned too, by its owner, and parts of parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import psycopg
from psycopg import sql

from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.names import Table, with_suffix
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.key import Key
from pgqueue_embed.pipeline.partitioning import Partitioning
from pgqueue_embed.pipeline.target_columns import TargetColumns

CREATE = "create table {part} partition of {table} {values} {storage}"


def method(partitioning: Partitioning, key: Key, columns: TargetColumns) -> sql.Composable:
    """Return by what a table of chunks with `key` in `columns` is parted, to stand behind it."""
    if partitioning.column is None:
        names = columns.fulltext_id
        return sql.SQL("partition by hash ({})").format(
            sql.SQL(", ").join(map(sql.Identifier, names))
        )
    name = columns.fulltext_id[key.names.index(partitioning.column)]
    return sql.SQL("partition by range ({})").format(sql.Identifier(name))


# As PostgreSQL reads and orders them, which the server is asked without making anything.
DESCENDING = """
select first, next
from (
    select
        bound as first,
        lead(bound) over (order by position) as next,
        bound::{type} < lead(bound::{type}) over (order by position) as is_ascending
    from unnest(%s::text[]) with ordinality as listed (bound, position)
) as pairs
where not is_ascending
limit 1
"""


def check_bounds(connection: Connection, partitioning: Partitioning, key: Key) -> None:
    """Raise UsageError for bounds that are no values of their column of `key`, or not ascending."""
    if partitioning.column is None:
        return
    column = key.columns[key.names.index(partitioning.column)]
    query = sql.SQL(DESCENDING).format(type=sql.SQL(column.type))
    try:
        with connection.transaction():
            wrong = connection.execute(query, (list(partitioning.bounds),)).fetchone()
    except psycopg.DataError as error:
        raise UsageError(
            f"--partition-by: {first_line(error)}; give values of {column.name}, which is of type"
            f" {column.type}"
        ) from None
    if wrong is not None:
        raise UsageError(
            f"--partition-by: {wrong[1]} does not come behind {wrong[0]}; each part ends where the"
            " next begins, so give the values in ascending order, each once"
        )


def check(connection: Connection, table: Table, partitioning: Partitioning, key: Key) -> None:
    """Raise UsageError for parts of `table`, which is yet to be made, that cannot be made.

    Because of their bounds, or because something has the name of one.
    """
    check_bounds(connection, partitioning, key)
    for number, _ in enumerate(_values(partitioning)):
        part = _part(table, str(number))
        if connection.has_relation(part):
            raise UsageError(
                f"{part}, a part of {table}, exists already; rename it, or name another table with"
                " --target-table"
            )


def create(
    connection: Connection, table: Table, partitioning: Partitioning, storage: sql.Composable
) -> None:
    """Make the parts of `table`, each with `storage`."""
    for number, values in enumerate(_values(partitioning)):
        part = _part(table, str(number))
        query = sql.SQL(CREATE).format(
            part=part.identifier, table=table.identifier, values=values, storage=storage
        )
        connection.execute(query)


def _part(table: Table, number: str) -> Table:
    return Table(schema=table.schema, name=with_suffix(table.name, f"_{number}"))


def _values(partitioning: Partitioning) -> Iterator[sql.Composable]:
    for remainder in range(partitioning.hashed):
        yield sql.SQL("for values with (modulus {}, remainder {})").format(
            sql.Literal(partitioning.hashed), sql.Literal(remainder)
        )
    bounds = partitioning.bounds
    for first, end in pairwise(bounds):
        yield sql.SQL("for values from ({}) to ({})").format(sql.Literal(first), sql.Literal(end))
    if bounds:
        yield sql.SQL("default")


# The tables that have the rows of one: itself, unless it is partitioned. Stands before a query.
LEAVES = """
with leaf as (
    select relid::oid
    from pg_partition_tree(to_regclass(%(table)s))
    where isleaf
    union
    select oid
    from pg_class
    where oid = to_regclass(%(table)s) and relkind <> 'p'
)
"""

NAMES = """
select nspname, relname
from leaf
join pg_class on pg_class.oid = relid
join pg_namespace on pg_namespace.oid = relnamespace
where {condition}
order by relid
"""


def leaves(
    connection: Connection,
    table: Table,
    condition: str = "true",
    values: Mapping[str, object] | None = None,
) -> list[Table]:
    """Return the tables that have the rows of `table`, itself alone unless it is partitioned.

    Those for which the SQL `condition` does not hold are left out. It is over their `relid`,
    `nspname` and `relname`, with `values` for its parameters.
    """
    query = LEAVES + NAMES.format(condition=condition)
    rows = connection.execute(query, {"table": table.quoted, **(values or {})}).fetchall()
    return [Table(schema=schema, name=name) for schema, name in rows]


SHARES = """
select count(*), coalesce(max(pg_table_size(relid)) / nullif(sum(pg_table_size(relid)), 0), 1)
from leaf
"""


def largest_part(connection: Connection, table: Table) -> tuple[int, float]:
    """Return how many parts `table` has, 1 if it has none, and the share of the largest in all."""
    number, share = connection.row(LEAVES + SHARES, {"table": table.quoted})
    return max(1, number), float(share)


# The indexes of tables that have rows, and of no whole, that no query can use.
UNUSABLE = """
select nspname, relname
from leaf
join pg_index on indrelid = relid
join pg_class on pg_class.oid = indexrelid
join pg_namespace on pg_namespace.oid = relnamespace
where not indisvalid and not relispartition
"""


def _unusable(connection: Connection, table: Table) -> list[sql.Identifier]:
    rows = connection.execute(LEAVES + UNUSABLE, {"table": table.quoted}).fetchall()
    return [sql.Identifier(schema, name) for schema, name in rows]


def drop_left_behind(connection: Connection, table: Table) -> None:
    """Drop what killed builders have left of indexes of `table`, or of its parts.

    The lock tells it from what is being built now. To be called in a transaction.
    """
    if _unusable(connection, table):
        connection.execute(sql.SQL("lock table {} in share mode").format(table.identifier))
    for index in _unusable(connection, table):
        connection.execute(sql.SQL("drop index {}").format(index))


def index_whole(connection: Connection, table: Table, create: sql.Composed) -> None:
    """Make the index of the partitioned `table`, which takes those of its parts, by `create`.

    It would take one of a part that a killed builder has left, too, and be of no use itself. The
    lock keeps parts from being added, whose index would be built under it. To be called in a
    transaction.
    """
    connection.execute(sql.SQL("lock table {} in share mode").format(table.identifier))
    drop_left_behind(connection, table)
    connection.execute(create)


def is_partitioned(connection: Connection, table: Table) -> bool:
    """Return whether `table`, which is there, has its rows in parts."""
    found = connection.value(
        "select relkind = 'p' from pg_class where oid = to_regclass(%s)", (table.quoted,)
    )
    return bool(found)


# A table and its parts, and theirs, each by the bounds that lead to it: of the table itself, none.
TREE = sql.SQL("""
with recursive tree as (
    select to_regclass(%(table)s)::oid as relid, '{}'::text[] collate "C" as bounds
    union all
    select pg_class.oid, bounds || pg_get_expr(relpartbound, pg_class.oid) collate "C"
    from tree
    join pg_inherits on inhparent = relid
    join pg_class on pg_class.oid = inhrelid
    where relispartition
)
""")

Bounds = tuple[str, ...]

PARTS = """
select nspname, relname
from pg_partition_tree(to_regclass(%s))
join pg_class on pg_class.oid = relid
join pg_namespace on pg_namespace.oid = relnamespace
where level > 0
order by relid
"""


def parts_of(connection: Connection, table: Table) -> list[Table]:
    """Return the parts of `table`, and their parts, in the order of their age."""
    rows = connection.execute(PARTS, (table.quoted,)).fetchall()
    return [Table(schema=schema, name=name) for schema, name in rows]


def part_of(table: Table, part: Table, former: Table) -> Table | None:
    """Return what `part` of `former` is called as one of `table`; None of one that `create` has
    not named."""
    number = part.name.rpartition("_")[2]
    return _part(table, number) if part == _part(former, number) else None
