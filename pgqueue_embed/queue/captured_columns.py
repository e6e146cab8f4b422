"""The columns of the source that a pipeline reads, whose changes capture looks at."""

from __future__ import annotations

from typing import Any

from psycopg import sql

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.source.read import condition


def captured_columns(connection: Connection, pipeline: Pipeline) -> tuple[str, ...]:
    """Return the columns, besides the key, whose change may change a record, in name order.

    These are the columns that are read, such as those of the document, and those that `where` uses.
    A virtual generated column, which a trigger does not see the value of, stands for the columns
    that it is computed from.
    """
    names = [column.name for column in pipeline.source_columns]
    if pipeline.spec.where is not None:
        names += _columns_of_condition(connection, pipeline.source, pipeline.spec.where)
    # A worker writes the vectors: no change of the record.
    unwatched = (*pipeline.key.names, pipeline.spec.into_column)
    names = [name for name in names if name not in unwatched]
    values = {"source": pipeline.source.quoted, "names": names}
    return tuple(name for (name,) in connection.execute(STORED, values))


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

# PostgreSQL notes which columns a view uses, so it need not be guessed from the text. A use of the
# row as a whole, ``source is not null``, leaves no note: it shows in the view's rule as a variable
# with the number 0, and then every column counts. So it does where the condition asks for the
# partition that a row lies in, by ``tableoid``: another value of any column may have moved it.
USED = """
select distinct attname
from pg_rewrite
join pg_depend
    on classid = 'pg_rewrite'::regclass
    and objid = pg_rewrite.oid
    and refclassid = 'pg_class'::regclass
    and refobjid = %(source)s::regclass
join pg_attribute
    on attrelid = refobjid
    and attnum > 0
    and (attnum = refobjsubid or refobjsubid < 0 or ev_action::text like '%%:varattno 0 %%')
where ev_class = %(view)s::regclass and not attisdropped
"""


# Where the row is used as a whole, it is not known whether that is for the column.
NAMED = """
select exists (
    select
    from pg_rewrite
    join pg_depend
        on classid = 'pg_rewrite'::regclass
        and objid = pg_rewrite.oid
        and refclassid = 'pg_class'::regclass
        and refobjid = %(source)s::regclass
    join pg_attribute on attrelid = refobjid and attnum = refobjsubid
    where ev_class = %(view)s::regclass and attname = %(column)s
)
"""


def condition_names(connection: Connection, source: Table, where: str, column: str) -> bool:
    """Return whether `where` names the `column` of `source`."""
    [(named,)] = _of_condition(connection, source, where, NAMED, column=column)
    return bool(named)


def _columns_of_condition(connection: Connection, source: Table, where: str) -> list[str]:
    """Return the columns of `source` that `where` uses."""
    return [name for (name,) in _of_condition(connection, source, where, USED)]


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
