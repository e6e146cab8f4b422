"""The rights that a search takes, and the GRANT of each that a role lacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import psycopg

from pgqueue_embed.db.errors import first_line, is_row_security
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.steps import Answer, AnyConnection, Step, Steps, guarded, run
from pgqueue_embed.errors import MissingRight, RoleFault, UntrustedCode

# What any search reads of pgembed's own; see docs/security.md.
OWN_TABLES = tuple(
    Table(schema="pgembed", name=name)
    for name in ("pipelines", "vector_indexes", "_yoyo_migration")
)

# By name: to_regclass raises an error without the right to use the schema.
MISSING = """
with listed as (
    select schema_name, table_name, pg_namespace.oid as schema_oid, pg_class.oid as table_oid
    from unnest(%s::text[], %s::text[]) as given (schema_name, table_name)
    join pg_namespace on nspname = schema_name
    join pg_class on relnamespace = pg_namespace.oid and relname = table_name
)
select distinct 1, format('grant usage on schema %%I to %%I', schema_name, current_user)
from listed
where not has_schema_privilege(schema_oid, 'usage')
union
select distinct 2, format('grant select on %%I.%%I to %%I', schema_name, table_name, current_user)
from listed
where not has_table_privilege(table_oid, 'select')
order by 1, 2
"""


@contextmanager
def naming_missing_rights(
    connection: Connection, tables: Sequence[Table] = OWN_TABLES
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
    connection: AnyConnection, tables: Sequence[Table], steps: Steps[Answer]
) -> Steps[Answer]:
    """Do what `naming_missing_rights` does, for `steps` in a transaction."""
    try:
        return (yield from guarded(connection, steps))
    except UntrustedCode:
        raise
    except (RoleFault, psycopg.errors.InsufficientPrivilege) as error:
        if is_row_security(error):
            raise
        raise (yield from _missing_right(error, tables)) from None


def missing_grants(connection: Connection, tables: Sequence[Table]) -> list[str]:
    """Return the GRANT of each right that this role lacks to read `tables`, if it lacks any.

    A right on some columns would do where these are all that is read; that of the whole table is
    what is named.
    """
    return run(connection, _missing(tables))


def _missing(tables: Sequence[Table]) -> Steps[list[str]]:
    places = ([each.schema for each in tables], [each.name for each in tables])
    return [grant for _, grant in (yield Step(MISSING, places))]


def _missing_right(
    error: RoleFault | psycopg.Error, tables: Sequence[Table]
) -> Steps[MissingRight]:
    says = first_line(error) if isinstance(error, psycopg.Error) else str(error)
    grants: list[str] = []
    with suppress(psycopg.Error):
        grants = yield from _missing(tables)
    return MissingRight(f"{says}; missing: {'; '.join(grants)}" if grants else says)
