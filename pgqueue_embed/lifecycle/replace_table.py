"""Replaces a target table, with its rights, indexes, views and names."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.target import ChunkView, view_of
from pgqueue_embed.target.chunk_table import FOREIGN_KEY_NAME


@dataclass(frozen=True)
class TableReplacement:
    """The table of chunks of `successor` takes the place of that of `pipeline`; see Takeover."""

    pipeline: Pipeline
    successor: Pipeline

    def copy_rights(self, connection: Connection) -> None:
        copy_rights(connection, self.pipeline.target, self.successor.target)

    def check(self, connection: Connection) -> None:
        check_replaceable(connection, self.pipeline, self.successor.target)

    def copy_indexes(self, connection: Connection) -> None:
        copy_indexes(connection, self.pipeline, self.successor)

    def exchange(self, connection: Connection) -> None:
        old, new = self.pipeline.target, self.successor.target
        self.copy_rights(connection)
        view = view_of(replace(self.successor.spec, target=old), self.successor.key)
        views = read_views(connection, old, own=view.table if self.pipeline.spec.view else None)
        comment = connection.execute(
            "select obj_description(%s::regclass, 'pg_class')", (old.quoted,)
        ).fetchone()
        parked = Table(schema=old.schema, name=f"pgembed_old_{self.pipeline.id}")
        _rename(connection, old, parked)
        _rename(connection, new, old)
        renew_views(connection, views)
        if self.pipeline.spec.view:
            renew_own_view(connection, view)
        connection.execute(sql.SQL("drop table {}").format(parked.identifier))
        rename_parts(connection, old, new.name)
        text = sql.Literal(comment[0] if comment else None)
        connection.execute(sql.SQL("comment on table {} is {}").format(old.identifier, text))


def _rename(connection: Connection, table: Table, other: Table) -> None:
    query = sql.SQL("alter table {} rename to {}")
    connection.execute(query.format(table.identifier, sql.Identifier(other.name)))


PARKED_VIEW = "pgembed_old_view"


def renew_own_view(connection: Connection, view: ChunkView) -> None:
    """Let the view read its tables as they are; one with other columns takes the old view's place.

    Its owner and everybody's rights on it stay. To be called in a transaction.
    """
    try:
        with connection.transaction():
            view.create(connection)
    except psycopg.errors.InvalidTableDefinition:
        parked = Table(schema=view.table.schema, name=PARKED_VIEW)
        _rename(connection, view.table, parked)
        view.create(connection)
        copy_rights(connection, parked, view.table)
        connection.execute(sql.SQL("drop view {}").format(parked.identifier))


# Rights on the table and on single columns; those of the owner come with the ownership.
GRANTS = """
with rights as (
    select relacl as acl, null::name as column_name, relowner
    from pg_class
    where oid = %(table)s::regclass
    union all
    select attacl, attname, relowner
    from pg_attribute
    join pg_class on pg_class.oid = attrelid
    where attrelid = %(table)s::regclass and attnum > 0 and attacl is not null
)
select privilege_type, column_name, rolname, is_grantable
from rights
cross join lateral aclexplode(acl)
left join pg_roles on pg_roles.oid = grantee
where grantee <> relowner
"""

OWNER = "select pg_get_userbyid(relowner) from pg_class where oid = %s::regclass"


def copy_rights(connection: Connection, old: Table, new: Table) -> None:
    """Give `new` the owner of `old` and everybody the rights that they have on `old`."""
    owner = connection.value(OWNER, (old.quoted,))
    maker = connection.value(OWNER, (new.quoted,))
    if owner != maker:
        query = sql.SQL("alter table {} owner to {}")
        connection.execute(query.format(new.identifier, sql.Identifier(owner)))
    for right, column, role, grantable in connection.execute(GRANTS, {"table": old.quoted}):
        columns = sql.SQL("({})").format(sql.Identifier(column)) if column else sql.SQL("")
        grant = sql.SQL("grant {} {} on {} to {} {}").format(
            sql.SQL(right),
            columns,
            new.identifier,
            sql.Identifier(role) if role else sql.SQL("public"),
            sql.SQL("with grant option" if grantable else ""),
        )
        connection.execute(grant)


# What a table can have that neither `create` makes nor a replacement copies. An adopted one may say
# that a chunk's id is unique, which the keys and indexes that it is made of are by themselves.
EXTRAS = """
select 'column ' || attname as extra
from pg_attribute
where attrelid = %(table)s::regclass and attnum > 0 and not attisdropped
union all
select 'trigger ' || tgname
from pg_trigger
where tgrelid = %(table)s::regclass and not tgisinternal
union all
select 'policy ' || polname
from pg_policy
where polrelid = %(table)s::regclass
union all
select 'row level security'
from pg_class
where oid = %(table)s::regclass and relrowsecurity
union all
select 'rule ' || rulename
from pg_rewrite
where ev_class = %(table)s::regclass
union all
select 'constraint ' || pg_get_constraintdef(oid)
from pg_constraint
where conrelid = %(table)s::regclass
    and contype in ('c', 'f', 'x', 'u')
    and conname <> %(own)s
    and pg_get_constraintdef(oid) <> format('UNIQUE (%%I)', %(chunk_id)s::text)
union all
select 'publication ' || pubname
from pg_publication_rel
join pg_publication on pg_publication.oid = prpubid
where prrelid = %(table)s::regclass
"""


def check_replaceable(connection: Connection, pipeline: Pipeline, new: Table) -> None:
    """Raise UsageError for what a person has added to the table of `pipeline` and `new` has not."""
    old = pipeline.target
    copied = {f"column {name}" for name in pipeline.spec.copy_columns}
    chunk_id = pipeline.spec.columns.chunk_id
    missing = _extras(connection, old, chunk_id) - copied - _extras(connection, new, chunk_id)
    if missing:
        raise UsageError(
            f"{old} has {', '.join(sorted(missing))}, which {new}, the table that is to take its"
            f" place, has not; make the same on {new}, or drop it, and switch again"
        )


def _extras(connection: Connection, table: Table, chunk_id: str) -> set[str]:
    values = {"table": table.quoted, "own": FOREIGN_KEY_NAME, "chunk_id": chunk_id}
    return {extra for (extra,) in connection.execute(EXTRAS, values)}


INDEXES = """
select
    relname as name,
    indisunique as is_unique,
    pg_get_indexdef(indexrelid) as definition,
    format('CREATE %%sINDEX %%I ON %%s ', case when indisunique then 'UNIQUE ' else '' end,
        relname, indrelid::regclass) as beginning
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
    there = {each.body for each in _indexes(connection, new.target)}
    built = []
    for index in _indexes(connection, old.target):
        body = _for_vectors(index.body, old, new)
        if body not in there:
            _build(connection, new.target, index, body)
            built.append(body)
    return built


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
    query = sql.SQL("create {unique}index concurrently on {table} {body}").format(
        unique=sql.SQL("unique " if index.is_unique else ""),
        table=table.identifier,
        body=sql.SQL(body),
    )
    try:
        connection.execute(query)
    except psycopg.Error as error:
        drop_unusable(connection, table)
        raise UsageError(
            f"cannot build index {index.name} on {table}: {first_line(error)}; build one by hand"
            " or drop it, and switch again"
        ) from None


UNUSABLE = """
select format('%%I.%%I', nspname, relname)
from pg_index
join pg_class on pg_class.oid = indexrelid
join pg_namespace on pg_namespace.oid = relnamespace
where indrelid = %s::regclass and not indisvalid
"""


def drop_unusable(connection: Connection, table: Table) -> None:
    for (name,) in connection.execute(UNUSABLE, (table.quoted,)).fetchall():
        connection.execute(sql.SQL("drop index concurrently if exists {}").format(sql.SQL(name)))


VIEWS = """
select distinct
    format('%%I.%%I', nspname, relname) as name,
    relkind = 'm' as is_materialized,
    pg_get_viewdef(pg_class.oid) as definition,
    array_to_string(reloptions, ', ') as options
from pg_depend
join pg_rewrite on pg_rewrite.oid = objid
join pg_class on pg_class.oid = ev_class
join pg_namespace on pg_namespace.oid = relnamespace
where classid = 'pg_rewrite'::regclass
    and refclassid = 'pg_class'::regclass
    and refobjid = %(table)s::regclass
    and pg_class.oid <> refobjid
    and pg_class.oid is distinct from to_regclass(%(own)s)
    and (%(column)s::text is null or refobjsubid = (
        select attnum from pg_attribute where attrelid = refobjid and attname = %(column)s
    ))
order by 1
"""


def read_views(
    connection: Connection, table: Table, column: str | None = None, *, own: Table | None = None
) -> list[dict[str, Any]]:
    """Return the views that read `table`, or one column of it, to be made anew by `renew_views`.

    Without `own`, the one that pgembed makes.
    Raises UsageError for a materialized view, whose rows would have to be computed again.
    """
    with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute("set local search_path = ''")
        views = cursor.execute(
            VIEWS, {"table": table.quoted, "column": column, "own": own.quoted if own else None}
        ).fetchall()
    for view in views:
        if view["is_materialized"]:
            raise UsageError(
                f"the materialized view {view['name']} reads {table}; drop it, and make it again"
                " after the switch"
            )
    return views


def renew_views(connection: Connection, views: list[dict[str, Any]]) -> None:
    """Let `views` read what has the name now that theirs had when they were read."""
    for view in views:
        options = sql.SQL(f" with ({view['options']})" if view["options"] else "")
        query = sql.SQL("create or replace view {}{} as {}").format(
            sql.SQL(view["name"]), options, sql.SQL(view["definition"])
        )
        try:
            connection.execute(query)
        except (
            psycopg.errors.InvalidTableDefinition,
            psycopg.errors.UndefinedColumn,
        ) as error:
            raise UsageError(
                f"view {view['name']} cannot read the new vectors: {first_line(error)}; drop it,"
                " and make it again after the switch"
            ) from None


NAMES = """
select relname, relkind
from pg_class
where pg_class.oid in (
    select indexrelid from pg_index where indrelid = %(table)s::regclass
    union all
    select objid
    from pg_depend
    where classid = 'pg_class'::regclass
        and refclassid = 'pg_class'::regclass
        and refobjid = %(table)s::regclass
        and deptype = 'i'
)
"""


def rename_parts(connection: Connection, table: Table, stem: str) -> None:
    """Call the indexes and sequences of `table` that begin with `stem` as if made under its name.

    Constraints are called as their indexes are. A name that is taken is left as it is.
    """
    for name, kind in connection.execute(NAMES, {"table": table.quoted}).fetchall():
        wanted = Table(schema=table.schema, name=table.name + name.removeprefix(stem))
        if name.startswith(stem) and not _is_taken(connection, wanted):
            query = sql.SQL("alter {} {} rename to {}").format(
                sql.SQL("sequence" if kind == "S" else "index"),
                sql.Identifier(table.schema, name),
                sql.Identifier(wanted.name),
            )
            connection.execute(query)


def _is_taken(connection: Connection, table: Table) -> bool:
    query = "select to_regclass(%s) is not null"
    taken = connection.value(query, (table.quoted,))
    return bool(taken)
