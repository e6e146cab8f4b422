"""Replaces a target table, with its rights, indexes, views and names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.lifecycle.copy_indexes import copy_indexes, index_names, take_index_names
from pgqueue_embed.lifecycle.rights import check_rights, copy_rights, take_owner
from pgqueue_embed.lifecycle.storage_parameters import copy_parameters
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.target import View, views_of
from pgqueue_embed.target.chunk_table import FOREIGN_KEY_NAME
from pgqueue_embed.target.parts import part_of, parts_of


@dataclass(frozen=True)
class TableReplacement:
    """The table of chunks of `successor` takes the place of that of `pipeline`; see Replacement."""

    pipeline: Pipeline
    successor: Pipeline

    def copy_rights(self, connection: Connection) -> None:
        copy_rights(connection, self.pipeline.target, self.successor.target)

    def check(self, connection: Connection) -> None:
        check_replaceable(connection, self.pipeline, self.successor)
        check_rights(connection, self.pipeline.target, self.successor.target)
        for view in self._new_views(self._old_views(connection)):
            view.check(connection)

    def copy_indexes(self, connection: Connection) -> None:
        if copy_indexes(connection, self.pipeline, self.successor):
            # The statistics of what an index computes begin with it.
            analyze = sql.SQL("analyze {}").format(self.successor.target.identifier)
            connection.execute(analyze)

    def exchange(self, connection: Connection) -> None:
        old, new = self.pipeline.target, self.successor.target
        self.copy_rights(connection)
        copy_parameters(connection, old, new)
        own = self._old_views(connection)
        views = read_views(connection, old, own=[view.table for view in own])
        comment = connection.execute(
            "select obj_description(%s::regclass, 'pg_class')", (old.quoted,)
        ).fetchone()
        names = index_names(connection, self.pipeline, self.successor)
        parked = Table(schema=old.schema, name=f"pgembed_old_{self.pipeline.id}")
        _rename(connection, old, parked)
        _rename(connection, new, old)
        renew_views(connection, views)
        self._exchange_own_views(connection, own)
        connection.execute(sql.SQL("drop table {}").format(parked.identifier))
        rename_all(connection, old, new)
        take_index_names(connection, names)
        text = sql.Literal(comment[0] if comment else None)
        connection.execute(sql.SQL("comment on table {} is {}").format(old.identifier, text))

    def _old_views(self, connection: Connection) -> Sequence[View]:
        pipeline = self.pipeline
        views = views_of(pipeline.spec, pipeline.key, pipeline.document)
        return [view for view in views if view.is_made(connection)]

    def _views(self) -> Sequence[View]:
        """Return the views of the successor in its new place."""
        place = {each: getattr(self.pipeline.spec, each) for each in ("name", "target", "view")}
        successor = self.successor
        return views_of(replace(successor.spec, **place), successor.key, successor.document)

    def _new_views(self, old: Sequence[View]) -> Sequence[View]:
        there = [view.table for view in old]
        return [view for view in self._views() if view.table not in there]

    def _exchange_own_views(self, connection: Connection, old: Sequence[View]) -> None:
        views, new = self._views(), self._new_views(old)
        for view in new:
            view.check(connection)
        for view in views:
            renew_own_view(connection, view)
        for view in new:
            take_owner(connection, self.pipeline.target, view.table)
        for view in old:
            if view.table not in [each.table for each in views]:
                connection.execute(sql.SQL("drop view {}").format(view.table.identifier))


def _rename(connection: Connection, table: Table, other: Table) -> None:
    query = sql.SQL("alter table {} rename to {}")
    connection.execute(query.format(table.identifier, sql.Identifier(other.name)))


PARKED_VIEW = "pgembed_old_view"


def renew_own_view(connection: Connection, view: View) -> None:
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


# What a table can have that neither `create` makes nor a replacement copies. An adopted one may say
# that a chunk's id is unique, which the key and the index that it is made of are by themselves; of
# a partitioned one, these are its primary key. What a part has by itself is for whoever names it.
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
    and pg_get_constraintdef(oid) <> (
        select format('UNIQUE (%%s)', string_agg(quote_ident(name), ', ' order by position))
        from unnest(%(key)s::text[]) with ordinality as listed (name, position)
    )
union all
select format('part %%s', pg_get_expr(relpartbound, pg_class.oid))
from pg_inherits
join pg_class on pg_class.oid = inhrelid
where inhparent = %(table)s::regclass and relispartition and %(parts)s
union all
select format('%%s of the part %%s', extra, pg_get_expr(relpartbound, pg_class.oid))
from pg_partition_tree(%(table)s::regclass) as part
join pg_class on pg_class.oid = part.relid
cross join lateral (
    select 'row level security' where relrowsecurity
    union all
    select 'policy ' || polname from pg_policy where polrelid = part.relid
    union all
    select 'rule ' || rulename from pg_rewrite where ev_class = part.relid
    union all
    select 'trigger ' || tgname
    from pg_trigger
    where tgrelid = part.relid and not tgisinternal and tgparentid = 0
) as of_part (extra)
where level > 0
union all
select 'publication ' || pubname
from pg_publication_rel
join pg_publication on pg_publication.oid = prpubid
where prrelid = %(table)s::regclass
"""


def check_replaceable(connection: Connection, pipeline: Pipeline, successor: Pipeline) -> None:
    """Raise UsageError for what a person has added to the table of `pipeline` alone."""
    old, new = pipeline.target, successor.target
    columns = pipeline.spec.columns
    own = {f"column {name}" for name in (*columns.names(), *pipeline.spec.copy_columns)}
    values = {
        "own": FOREIGN_KEY_NAME,
        "chunk_id": columns.chunk_id,
        "key": [*columns.fulltext_id, columns.chunk_index],
        # Parts that were asked for anew are not to be those of before.
        "parts": pipeline.spec.partition_by == successor.spec.partition_by,
    }
    missing = _extras(connection, old, values) - own - _extras(connection, new, values)
    if missing:
        raise UsageError(
            f"{old} has {', '.join(sorted(missing))}, which {new}, the table that is to take its"
            f" place, has not; make the same on {new}, or drop it, and switch again"
        )


def _extras(connection: Connection, table: Table, values: dict[str, Any]) -> set[str]:
    return {extra for (extra,) in connection.execute(EXTRAS, {**values, "table": table.quoted})}


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
    and not exists (
        select from unnest(%(own)s::text[]) as own (view) where to_regclass(view) = pg_class.oid
    )
    and (%(column)s::text is null or refobjsubid = (
        select attnum from pg_attribute where attrelid = refobjid and attname = %(column)s
    ))
order by 1
"""


def read_views(
    connection: Connection, table: Table, column: str | None = None, *, own: Sequence[Table] = ()
) -> list[dict[str, Any]]:
    """Return the views that read `table`, or one column of it, to be made anew by `renew_views`.

    Without `own`, those that pgembed makes.
    Raises UsageError for a materialized view, whose rows would have to be computed again.
    """
    with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute("set local search_path = ''")
        views = cursor.execute(
            VIEWS,
            {"table": table.quoted, "column": column, "own": [view.quoted for view in own]},
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


def rename_all(connection: Connection, table: Table, former: Table) -> None:
    """Call the parts, indexes and sequences of `table` as if made under its name.

    They have their names from that which `table` had before. Constraints are called as their
    indexes are. A name that is taken is left as it is.
    """
    _rename_own(connection, table, former.name)
    for part in parts_of(connection, table):
        wanted = part_of(table, part, former)
        if wanted is not None and not connection.has_relation(wanted):
            _rename(connection, part, wanted)
            _rename_own(connection, wanted, part.name)


def _rename_own(connection: Connection, table: Table, stem: str) -> None:
    for name, kind in connection.execute(NAMES, {"table": table.quoted}).fetchall():
        # PostgreSQL has cut what a long name begins with: it stays as it is.
        if not name.startswith(stem):
            continue
        wanted = Table(schema=table.schema, name=table.name + name.removeprefix(stem))
        if not connection.has_relation(wanted):
            query = sql.SQL("alter {} {} rename to {}").format(
                sql.SQL("sequence" if kind == "S" else "index"),
                sql.Identifier(table.schema, name),
                sql.Identifier(wanted.name),
            )
            connection.execute(query)
