"""A readable dump of schema pgembed from the catalogue, the same on every run."""

from __future__ import annotations

from collections.abc import Iterator

from pgqueue_embed.db.session import Connection

# Yoyo's own tables are its own business.
RELATIONS = """
select
    pg_class.oid,
    relname,
    case relkind when 'v' then 'view' when 'r' then 'table' else relkind::text end,
    obj_description(pg_class.oid, 'pg_class'),
    array_to_string(reloptions, ', '),
    case when relkind = 'v' then pg_get_viewdef(pg_class.oid) end
from pg_class
where relnamespace = 'pgembed'::regnamespace
    and relkind in ('r', 'v', 'm', 'p', 'f')
    and relname not like '%%yoyo%%'
order by relkind, relname collate "C"
"""

COLUMNS = """
select concat_ws(
    ' ',
    attname,
    format_type(atttypid, atttypmod),
    case when collname <> 'default' then format('collate "%%s"', collname) end,
    case when attnotnull then 'not null' end,
    case attidentity when 'a' then 'generated always as identity' when 'd' then 'identity' end,
    'default ' || pg_get_expr(adbin, adrelid),
    '-- ' || col_description(attrelid, attnum)
)
from pg_attribute
left join pg_attrdef on adrelid = attrelid and adnum = attnum
left join pg_collation on pg_collation.oid = attcollation
where attrelid = %s and attnum > 0 and not attisdropped
order by attnum
"""

# Not the not-null constraints, which only PostgreSQL 18 lists here.
CONSTRAINTS = """
select conname || ' ' || pg_get_constraintdef(oid)
from pg_constraint
where conrelid = %s and contype <> 'n'
order by conname collate "C"
"""

INDEXES = """
select pg_get_indexdef(indexrelid)
from pg_index
where indrelid = %s
    and not exists (select 1 from pg_constraint where conindid = indexrelid)
order by 1
"""

TRIGGERS = """
select pg_get_triggerdef(oid) from pg_trigger where tgrelid = %s and not tgisinternal order by 1
"""

FUNCTIONS = """
select pg_get_functiondef(oid), obj_description(oid, 'pg_proc'), proacl::text is null
from pg_proc
where pronamespace = 'pgembed'::regnamespace and prokind = 'f'
order by proname collate "C", oid::regprocedure::text collate "C"
"""

PARTS = {
    "column": COLUMNS,
    "constraint": CONSTRAINTS,
    "index": INDEXES,
    "trigger": TRIGGERS,
}


def dump_schema(connection: Connection) -> str:
    """Return everything that the migrations made, as text with one fact a line."""
    with connection.transaction():
        # So that every name is shown with its schema.
        connection.execute("set local search_path = pg_catalog")
        return "\n".join(_lines(connection)).rstrip() + "\n"


def _lines(connection: Connection) -> Iterator[str]:
    for oid, name, kind, comment, options, definition in connection.execute(RELATIONS).fetchall():
        yield f"{kind} pgembed.{name}"
        yield f"  comment: {comment}"
        if options:
            yield f"  with: {options}"
        for part, query in PARTS.items():
            for (line,) in connection.execute(query, (oid,)):
                yield f"  {part}: {line}"
        if definition:
            yield from (f"    {line}" for line in definition.splitlines())
        yield ""
    for definition, comment, is_public in connection.execute(FUNCTIONS):
        yield from definition.splitlines()
        yield f"  comment: {comment}"
        yield f"  may be executed by: {'everybody' if is_public else 'its owner'}"
        yield ""
