"""Builds for a target what indexes another one has, while both are used."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.locks import in_short_waits
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.target.parts import drop_left_behind, index_whole, leaves, parts_of
from pgqueue_embed.target.unusable_indexes import dropped_if_broken_off

INDEXES = """
select
    relname as name,
    indisunique as is_unique,
    pg_get_indexdef(indexrelid) as definition,
    format('CREATE %%sINDEX %%I ON %%s%%s ', case when indisunique then 'UNIQUE ' else '' end,
        relname, case when relkind = 'I' then 'ONLY ' else '' end, indrelid::regclass) as beginning
from pg_index
join pg_class on pg_class.oid = indexrelid
where indrelid = %(table)s::regclass
    and indisvalid
    and not exists (select from pg_constraint where conindid = indexrelid)
order by relname
"""


@dataclass(frozen=True, kw_only=True)
class _Index:
    name: str
    is_unique: bool
    body: str


def copy_indexes(connection: Connection, old: Pipeline, new: Pipeline) -> list[str]:
    """Build every index of the old target that the new one lacks, while both are used.

    Returns what was built, as its definitions. An index of vectors is built for the new type.
    """
    table = new.target
    in_short_waits(connection, lambda: drop_left_behind(connection, table), table=table)
    there = {each.body for each in _indexes(connection, table)}
    built = []
    for index in _indexes(connection, old.target):
        body = _for_vectors(index.body, old, new)
        if body not in there:
            _build(connection, table, index, body)
            built.append(body)
    return built


# Of a table and its parts, what each index is of and how it is called.
IndexNames = Mapping[Table, Sequence[tuple[str, str]]]


def index_names(connection: Connection, old: Pipeline, new: Pipeline) -> IndexNames:
    """Return what the old target's indexes are of, for the vectors of the new one, and called."""
    return {
        table: [
            (_for_vectors(each.body, old, new), each.name) for each in _indexes(connection, table)
        ]
        for table in (old.target, *parts_of(connection, old.target))
    }


def take_index_names(connection: Connection, names: IndexNames) -> None:
    """Call the indexes of tables as those of the tables were in whose place they are.

    PostgreSQL has named them, since the names were taken. One that is taken still is left as it is.
    """
    for table in filter(connection.has_relation, names):
        unnamed = _indexes(connection, table)
        for body, name in names[table]:
            index = next((each for each in unnamed if each.body == body), None)
            if index is None:
                continue
            unnamed.remove(index)
            if not connection.has_relation(Table(schema=table.schema, name=name)):
                query = sql.SQL("alter index {} rename to {}")
                index_now = sql.Identifier(table.schema, index.name)
                connection.execute(query.format(index_now, sql.Identifier(name)))


# What is indexed of smaller vectors has their dimensions in it.
DIMENSIONED = r"(\)::(?:[\w\".]+\.)?(?:halfvec|bit)\()%d\)"


def _for_vectors(body: str, old: Pipeline, new: Pipeline) -> str:
    """Return what an index is of, as the vectors of the new generation are."""
    typed = body.replace(f"{old.spec.vector_type}_", f"{new.spec.vector_type}_")
    return re.sub(DIMENSIONED % old.dimensions, rf"\g<1>{new.dimensions})", typed)


def _indexes(connection: Connection, table: Table) -> list[_Index]:
    with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
        # So that every name in a definition is written with its schema.
        cursor.execute("set local search_path = ''")
        rows = cursor.execute(INDEXES, {"table": table.quoted}).fetchall()
    return [
        _Index(
            name=row["name"],
            is_unique=row["is_unique"],
            body=_after(row["definition"], row["beginning"]),
        )
        for row in rows
    ]


def _after(definition: str, beginning: str) -> str:
    if not definition.startswith(beginning):
        raise UsageError(f"cannot copy the index: {definition}; drop it, or make it by hand")
    return definition.removeprefix(beginning)


def _build(connection: Connection, table: Table, index: _Index, body: str) -> None:
    unique = sql.SQL("unique " if index.is_unique else "")

    def create(each: Table, concurrently: sql.SQL) -> sql.Composed:
        return sql.SQL("create {}index {}on {} {}").format(
            unique, concurrently, each.identifier, sql.SQL(body)
        )

    def is_there(part: Table) -> bool:
        return body in {each.body for each in _indexes(connection, part)}

    try:
        build_by_parts(connection, table, create, is_there)
    except psycopg.Error as error:
        raise UsageError(
            f"cannot build index {index.name} on {table}: {first_line(error)}; build one by hand"
            " or drop it, and switch again"
        ) from None


def build_by_parts(
    connection: Connection,
    table: Table,
    create: Callable[[Table, sql.SQL], sql.Composed],
    is_there: Callable[[Table], bool],
) -> None:
    """Build an index while `table` is used: of a partitioned one of each part, then of the whole.

    `create` makes the statement for a table, with ``concurrently `` where that is given; a part of
    which the index `is_there` is left as it is. Raises what the server says, with what was begun
    dropped and what was finished kept.
    """
    parts = leaves(connection, table)
    for part in parts:
        if part == table or not is_there(part):
            with dropped_if_broken_off(connection, part):
                connection.execute(create(part, sql.SQL("concurrently ")))
    if parts != [table]:
        # It takes what its parts have, and builds nothing.
        of_whole = create(table, sql.SQL(""))
        in_short_waits(connection, lambda: index_whole(connection, table, of_whole), table=table)
