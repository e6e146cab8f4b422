"""The rights that a search takes, and the GRANT of each that a role lacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psycopg
from psycopg.types.json import Jsonb

from pgqueue_embed.db.errors import first_line, is_row_security
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.steps import Answer, AnyConnection, Step, Steps, in_savepoint, run
from pgqueue_embed.errors import MissingRight, RoleFault, UntrustedCode


@dataclass(frozen=True)
class Readable:
    """A table that is read: these of its columns, or all. Names that it has not are none of it."""

    table: Table
    columns: tuple[str, ...] | None = None


# What any search reads of pgembed's own; see docs/security.md.
OWN_TABLES = tuple(
    Readable(Table(schema="pgembed", name=name))
    for name in ("pipelines", "vector_indexes", "_yoyo_migration")
)

# By name: to_regclass raises an error without the right to use the schema.
MISSING = """
with listed as (
    select
        schema_name,
        table_name,
        columns,
        pg_namespace.oid as schema_oid,
        pg_class.oid as table_oid
    from jsonb_to_recordset(%s)
        as given (schema_name text, table_name text, columns text[])
    join pg_namespace on nspname = schema_name
    join pg_class on relnamespace = pg_namespace.oid and relname = table_name
)
select distinct 1, format('grant usage on schema %%I to %%I', schema_name, current_user)
from listed
where not has_schema_privilege(schema_oid, 'usage')
union
select 2, format('grant select on %%I.%%I to %%I', schema_name, table_name, current_user)
from listed
where columns is null and not has_table_privilege(table_oid, 'select')
union
select
    2,
    format(
        'grant select (%%s) on %%I.%%I to %%I',
        string_agg(quote_ident(attname), ', ' order by attnum),
        schema_name,
        table_name,
        current_user
    )
from listed
join pg_attribute on attrelid = table_oid and attname = any(columns)
where attnum > 0 and not attisdropped and not has_column_privilege(table_oid, attnum, 'select')
group by schema_name, table_name
order by 1, 2
"""


# Of a condition's tables only PostgreSQL knows, which tells their names without their schemas; and
# the schema of the extension is in no list.
REFUSED = "permission denied for "
NAMED = """
select format('grant usage on schema %%I to %%I', nspname, current_user)
from pg_namespace
where nspname = any(%(names)s) and not has_schema_privilege(oid, 'usage')
union all
select format('grant select on %%I.%%I to %%I', nspname, relname, current_user)
from pg_class
join pg_namespace on pg_namespace.oid = relnamespace
where
    relname = any(%(names)s)
    and relkind in ('r', 'p', 'v', 'm', 'f')
    and not has_table_privilege(pg_class.oid, 'select')
"""


@contextmanager
def naming_missing_rights(
    connection: Connection, tables: Sequence[Readable] = OWN_TABLES
) -> Iterator[None]:
    """Raise MissingRight, with each GRANT, where a role may not read `tables` in the block."""
    try:
        yield
    except UntrustedCode:
        raise
    except (RoleFault, psycopg.errors.InsufficientPrivilege) as error:
        if is_row_security(error):
            raise
        raise run(connection, _missing_right(error, tables)) from None


def with_rights_named(
    connection: AnyConnection, tables: Sequence[Readable], steps: Steps[Answer]
) -> Steps[Answer]:
    """Do what `naming_missing_rights` does, for `steps` in a transaction."""
    try:
        return (yield from in_savepoint(connection, steps))
    except UntrustedCode:
        raise
    except (RoleFault, psycopg.errors.InsufficientPrivilege) as error:
        if is_row_security(error):
            raise
        raise (yield from _missing_right(error, tables)) from None


def missing_grants(connection: Connection, tables: Sequence[Readable]) -> list[str]:
    """Return the GRANT of each right that this role lacks to read `tables`, if it lacks any."""
    return run(connection, _missing(tables))


def _missing(tables: Sequence[Readable]) -> Steps[list[str]]:
    given = [
        {
            "schema_name": each.table.schema,
            "table_name": each.table.name,
            "columns": each.columns,
        }
        for each in tables
    ]
    return [grant for _, grant in (yield Step(MISSING, (Jsonb(given),)))]


def _missing_by_name(says: str) -> Steps[list[str]]:
    """Return the GRANT for what PostgreSQL says is refused: a table of a person's condition."""
    _, is_refused, named = says.partition(REFUSED)
    if not is_refused:
        return []
    # Its kind has one word or two: schema, table, materialized view.
    words = named.split(" ")
    names = [" ".join(words[1:]), " ".join(words[2:])]
    return [grant for (grant,) in (yield Step(NAMED, {"names": names}))]


def with_grants(says: str, tables: Sequence[Readable] = ()) -> Steps[str]:
    """Return what PostgreSQL says, with the GRANT of each right that this role lacks.

    Those to read `tables`, or else what it says may not be read.
    """
    grants: list[str] = []
    with suppress(psycopg.Error):
        grants = (yield from _missing(tables)) or (yield from _missing_by_name(says))
    return f"{says}; missing: {'; '.join(grants)}" if grants else says


def _missing_right(
    error: RoleFault | psycopg.Error, tables: Sequence[Readable]
) -> Steps[MissingRight]:
    says = first_line(error) if isinstance(error, psycopg.Error) else str(error)
    return MissingRight((yield from with_grants(says, tables)))
