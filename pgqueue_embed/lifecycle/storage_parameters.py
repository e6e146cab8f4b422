"""The storage parameters of a table and its parts, as they are on what replaces it.

A person sets them by `alter table … set (autovacuum_vacuum_scale_factor = 0.05)`.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.target.parts import TREE, Bounds

# Those of the table that holds long values are set by names that begin with toast. A table in parts
# has none itself.
PARAMETERS = TREE + sql.SQL("""
select bounds, nspname, relation.relname, set_by_name
from tree
join pg_class as relation on relation.oid = relid
join pg_namespace on pg_namespace.oid = relation.relnamespace
left join pg_class as toast on toast.oid = relation.reltoastrelid
cross join lateral (
    select coalesce(jsonb_object_agg(prefix || option_name, option_value), '{}')
    from (values ('', relation.reloptions), ('toast.', toast.reloptions)) as kind (prefix, options)
    cross join lateral pg_options_to_table(options)
) as found (set_by_name)
where relation.relkind = 'r'
""")


@dataclass(frozen=True, kw_only=True)
class _Set:
    """The parameters that are set on a table, by name."""

    table: Table
    values: frozenset[tuple[str, str]]


def copy_parameters(connection: Connection, old: Table, new: Table) -> None:
    """Set on `new`, or its parts, what is set on `old`; what is set on them alone stays.

    On a part that of the part with the same bounds, or else what is set on all of `old`.
    """
    before, after = _set_on(connection, old), _set_on(connection, new)
    of_all = [each.values for each in before.values()]
    everywhere = frozenset.intersection(*of_all) if of_all else frozenset()
    for bounds, each in after.items():
        wanted = before[bounds].values if bounds in before else everywhere
        for name, value in sorted(wanted - each.values):
            _set(connection, each.table, name, value)


def _set_on(connection: Connection, table: Table) -> dict[Bounds, _Set]:
    rows = connection.execute(PARAMETERS, {"table": table.quoted}).fetchall()
    return {
        tuple(bounds): _Set(table=Table(schema=schema, name=name), values=frozenset(values.items()))
        for bounds, schema, name, values in rows
    }


def _set(connection: Connection, table: Table, name: str, value: str) -> None:
    query = sql.SQL("alter table {} set ({} = {})")
    parameter = sql.Identifier(*name.split("."))
    connection.execute(query.format(table.identifier, parameter, sql.Literal(value)))
