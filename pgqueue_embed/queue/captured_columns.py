"""The columns of the source that a pipeline reads, whose changes capture looks at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from psycopg import sql

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.source.read import condition


@dataclass(frozen=True, kw_only=True)
class Captured:
    """The `names` of columns, in order, and what they were found by.

    These are the expressions of the columns `virtual`, and if the condition `uses_rows` as a whole,
    all columns: as text in `derived_from`, to be compared with what the function of that name tells
    later on; empty if there is neither.
    """

    names: tuple[str, ...]
    virtual: tuple[str, ...] = ()
    uses_rows: bool = False
    derived_from: str = ""


def captured_columns(connection: Connection, pipeline: Pipeline) -> Captured:
    """Return the columns, besides the key, whose change may change a record.

    These are the columns that are read, such as those of the document, and those that `where` uses.
    A virtual generated column, which a trigger does not see the value of, stands for the columns
    that it is computed from.
    """
    names, uses_rows = [column.name for column in pipeline.source_columns], False
    if pipeline.spec.where is not None:
        used = _of_condition(connection, pipeline.source, pipeline.spec.where, USED)
        names += [name for name, _ in used]
        uses_rows = any(as_row for _, as_row in used)
    # A worker writes the vectors: no change of the record.
    unwatched = (*pipeline.key.names, pipeline.spec.into_column)
    names = [name for name in names if name not in unwatched]
    values = {"source": pipeline.source.quoted, "names": names}
    stored = tuple(name for (name,) in connection.execute(STORED, values))
    virtual = tuple(name for (name,) in connection.execute(VIRTUAL, values))
    found = Captured(names=stored, virtual=virtual, uses_rows=uses_rows)
    source = sql.SQL("{}::regclass").format(sql.Literal(pipeline.source.quoted))
    return replace(found, derived_from=connection.value(derived_from(found, source)))


def derived_from(captured: Captured, relation: sql.Composable) -> sql.Composed:
    """Return what tells of `relation`, by its number, what `captured` was derived from."""
    return sql.SQL(DERIVED_FROM).format(
        relation=relation,
        virtual=sql.Literal(list(captured.virtual)),
        uses_rows=sql.Literal(captured.uses_rows),
    )


VIRTUAL = """
select attname
from pg_attribute
where attrelid = %(source)s::regclass
    and attname = any(%(names)s)
    and attgenerated = 'v'
    and not attisdropped
order by 1
"""

DERIVED_FROM = """
    select concat_ws(
        ', ',
        string_agg(attname || ' ' || pg_get_expr(adbin, adrelid), ', ' order by attname)
            filter (where attname = any({virtual}::text[])),
        case when {uses_rows} then count(*) end
    )
    from pg_attribute
    left join pg_attrdef on adrelid = attrelid and adnum = attnum and attgenerated = 'v'
    where attrelid = {relation} and attnum > 0 and not attisdropped
"""


STORED = """
with named as (
    select attnum, attname, attgenerated = 'v' as is_virtual
    from pg_attribute
    where attrelid = %(source)s::regclass and attname = any(%(names)s) and not attisdropped
)
select attname
from named
where not is_virtual
union
select pg_attribute.attname
from named
join pg_attrdef on adrelid = %(source)s::regclass and adnum = named.attnum
join pg_depend
    on classid = 'pg_attrdef'::regclass
    and objid = pg_attrdef.oid
    and refclassid = 'pg_class'::regclass
    and refobjid = adrelid
join pg_attribute on attrelid = adrelid and pg_attribute.attnum = refobjsubid
where named.is_virtual and refobjsubid <> named.attnum
order by 1
"""

# What a view uses of the source.
OF_VIEW = """
from pg_rewrite
join pg_depend
    on classid = 'pg_rewrite'::regclass
    and objid = pg_rewrite.oid
    and refclassid = 'pg_class'::regclass
    and refobjid = %(source)s::regclass
"""

# PostgreSQL notes which columns a view uses, so it need not be guessed from the text. A use of the
# row as a whole, ``source is not null``, leaves no note: it shows in the view's rule as a variable
# with the number 0, and then every column counts. So it does where the condition asks for the
# partition that a row lies in, by ``tableoid``: another value of any column may have moved it.
USED = f"""
select attname, bool_or(refobjsubid < 0 or ev_action::text like '%%:varattno 0 %%')
{OF_VIEW}
join pg_attribute
    on attrelid = refobjid
    and attnum > 0
    and (attnum = refobjsubid or refobjsubid < 0 or ev_action::text like '%%:varattno 0 %%')
where ev_class = %(view)s::regclass and not attisdropped
group by attname
"""


# Where the row is used as a whole, it is not known whether that is for the column.
NAMED = f"""
select exists (
    select
    {OF_VIEW}
    join pg_attribute on attrelid = refobjid and attnum = refobjsubid
    where ev_class = %(view)s::regclass and attname = %(column)s
)
"""


def condition_names(connection: Connection, source: Table, where: str, column: str) -> bool:
    """Return whether `where` names the `column` of `source`."""
    [(named,)] = _of_condition(connection, source, where, NAMED, column=column)
    return bool(named)


def _of_condition(
    connection: Connection, source: Table, where: str, query: str, **values: str
) -> list[tuple[Any, ...]]:
    """Return what `query` tells of `where`, as a view that is made and taken back."""
    view = Table(schema="pgembed", name="columns_of_condition")
    create = sql.SQL("create view {} as select 1 as one from {} as source where {}").format(
        view.identifier, source.identifier, condition(where)
    )
    with connection.transaction(force_rollback=True):
        connection.execute(create, ())
        values |= {"source": source.quoted, "view": view.quoted}
        return connection.execute(query, values).fetchall()
