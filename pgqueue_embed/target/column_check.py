"""Checks that a column of the source can hold the vectors, one that is there or one to be added."""

from __future__ import annotations

from dataclasses import dataclass

from pgqueue_embed.db.names import Table, quoted
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.spec import AUTO

VECTOR_TYPES = ("vector", "halfvec")

FIND = """
select
    format_type(atttypid, atttypmod),
    typname,
    case
        when attgenerated <> '' then 'a generated column'
        when attnotnull then 'not null, and a record without text has no vector'
    end,
    has_column_privilege(attrelid, attnum, 'update')
from pg_attribute
join pg_type on pg_type.oid = atttypid
where attrelid = to_regclass(%(table)s)
    and attname = %(column)s
    and attnum > 0
    and not attisdropped
"""


@dataclass(frozen=True)
class FoundColumn:
    """A column that is there; `hindrance` says why vectors cannot come and go in it, if so."""

    type: str
    type_name: str
    hindrance: str | None
    may_be_updated: bool


def find_column(connection: Connection, table: Table, name: str) -> FoundColumn | None:
    """Return the column `name` of `table`, or None when there is none."""
    values = {"table": table.quoted, "column": name}
    row = connection.execute(FIND, values).fetchone()
    return None if row is None else FoundColumn(*row)


def check_column(connection: Connection, table: Table, name: str, vector_type: str) -> None:
    """Raise UsageError unless vectors can be written to column `name`, or it can be added."""
    kind, owned = connection.row(
        "select relkind, pg_has_role(relowner, 'usage') from pg_class where oid = %s::regclass",
        (table.quoted,),
    )
    if kind not in ("r", "p"):
        raise UsageError(
            f"{table} is no ordinary table: no column of it can hold the vectors; leave"
            " --into-column out, and they get a table of their own"
        )
    found = find_column(connection, table, name)
    if found is not None:
        _check_found(table, name, vector_type, found)
    elif not owned:
        raise UsageError(
            f"this role may not add column {name} to {table}; create the pipeline as the table's"
            f" owner, or let the owner add it, of type {_said(vector_type)}, and grant update on it"
        )


def _said(vector_type: str) -> str:
    return " or ".join(VECTOR_TYPES) if vector_type == AUTO else vector_type


def _check_found(table: Table, name: str, vector_type: str, found: FoundColumn) -> None:
    if found.type_name not in (VECTOR_TYPES if vector_type == AUTO else (vector_type,)):
        raise UsageError(
            f"column {name} of {table} is there already, of type {found.type}; name another one"
            f" with --into-column, or its type with --vector-type (now {vector_type})"
        )
    if found.hindrance is not None:
        raise UsageError(
            f"column {name} of {table} is {found.hindrance}; name another one with --into-column"
        )
    if not found.may_be_updated:
        raise UsageError(
            f"this role may not write to column {name} of {table}; its owner:"
            f" grant update ({quoted(name)}) on {table.quoted} to this role"
        )
