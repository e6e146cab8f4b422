"""Replaces a column of vectors in the source, with its rights and indexes."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg import sql

from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.names import next_name
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.lifecycle.replace_table import read_views, renew_views
from pgqueue_embed.lifecycle.rights import copy_column_rights
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.target import target_of
from pgqueue_embed.target.unusable_indexes import drop_unusable, dropped_if_broken_off
from pgqueue_embed.vector_search.index_build import element

COMMENT = """
select col_description(attrelid, attnum)
from pg_attribute
where attrelid = %(table)s::regclass and attname = %(column)s
"""

# All that goes with a column when it is dropped, or keeps it from being dropped. Views can be made
# anew, and so can a plain index of a table without partitions.
DEPENDENTS = """
with recursive tree as (
    select %(table)s::regclass::oid as table_id
    union all
    select inhrelid from pg_inherits join tree on inhparent = table_id
)
select distinct pg_describe_object(classid, objid, objsubid)
from tree
join pg_attribute on attrelid = table_id and attname = %(column)s
join pg_depend
    on refclassid = 'pg_class'::regclass and refobjid = attrelid and refobjsubid = attnum
left join pg_index on classid = 'pg_class'::regclass and indexrelid = objid
where classid <> 'pg_rewrite'::regclass
    and (
        indexrelid is null
        or indnatts > 1
        or (indexprs is not null and not exists (
            select
            from pgembed.vector_indexes
            join pg_class on pg_class.oid = indexrelid and relname = index_name
            where pipeline = %(pipeline)s and is_whole
        ))
        or indpred is not null
        or (select count(*) > 1 from tree)
    )
order by 1
"""

INDEXES = """
select
    relname,
    indisunique,
    amname,
    nspname,
    opcname,
    coalesce(reloptions, '{}'),
    coalesce(quantize, 'none')
from pg_index
join pg_class on pg_class.oid = indexrelid
join pg_am on pg_am.oid = relam
join pg_opclass on pg_opclass.oid = indclass[0]
join pg_namespace on pg_namespace.oid = opcnamespace
left join pgembed.vector_indexes on pipeline = %(pipeline)s and index_name = relname and is_whole
left join pg_attribute on attrelid = indrelid and attnum = indkey[0]
where indrelid = %(table)s::regclass
    and indisvalid
    and (attname = %(column)s or (indexprs is not null and quantize is not null))
order by relname
"""

BUILD = """
create {unique}index concurrently {name} on {table}
using {method} ({element}) {parameters}
"""


@dataclass(frozen=True)
class _Index:
    """An index of one column; `options` are its storage parameters, as name=value."""

    name: str
    is_unique: bool
    method: str
    operator_schema: str
    operator_class: str
    options: list[str]
    quantize: str

    @property
    def parameters(self) -> sql.Composable:
        pairs = [option.split("=", 1) for option in self.options]
        if not pairs:
            return sql.SQL("")
        return sql.SQL("with ({})").format(
            sql.SQL(", ").join(
                sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value))
                for name, value in pairs
            )
        )


@dataclass(frozen=True)
class ColumnReplacement:
    """The column of `successor` takes the place of that of `pipeline`; see Replacement."""

    pipeline: Pipeline
    successor: Pipeline

    def copy_rights(self, connection: Connection) -> None:
        old, new = (each.spec.columns.embedding for each in (self.pipeline, self.successor))
        copy_column_rights(connection, self.pipeline.target, old, new)

    def check(self, connection: Connection) -> None:
        dependents = [name for (name,) in connection.execute(DEPENDENTS, self._old)]
        if dependents:
            raise UsageError(
                f"{target_of(self.pipeline)} has {', '.join(dependents)}, which cannot be carried"
                " over to another column; drop it, and make it again after the switch"
            )

    def copy_indexes(self, connection: Connection) -> None:
        """Build them under names of their own; an index of vectors is built for the new type."""
        there = {each.name for each in _indexes(connection, self._new)}
        for index in _indexes(connection, self._old):
            if next_name(index.name) not in there:
                self._build(connection, index)

    def exchange(self, connection: Connection) -> None:
        table, name = self.pipeline.target, self.pipeline.spec.columns.embedding
        self.copy_rights(connection)
        views = read_views(connection, table, name)
        indexes = _indexes(connection, self._old)
        comment = connection.value(COMMENT, self._old)
        parked = f"pgembed_old_{self.pipeline.id}"
        self._rename(connection, name, parked)
        self._rename(connection, self.successor.spec.columns.embedding, name)
        renew_views(connection, views)
        drop = sql.SQL("alter table {} drop column {}")
        connection.execute(drop.format(table.identifier, sql.Identifier(parked)))
        for index in indexes:
            self._take_name(connection, index)
        describe = sql.SQL("comment on column {}.{} is {}")
        connection.execute(
            describe.format(table.identifier, sql.Identifier(name), sql.Literal(comment))
        )

    @property
    def _old(self) -> dict[str, str]:
        return {
            "pipeline": self.pipeline.name,
            "table": self.pipeline.target.quoted,
            "column": self.pipeline.spec.columns.embedding,
        }

    @property
    def _new(self) -> dict[str, str]:
        return {
            "pipeline": self.successor.name,
            "table": self.pipeline.target.quoted,
            "column": self.successor.spec.columns.embedding,
        }

    def _build(self, connection: Connection, index: _Index) -> None:
        table, name = self.pipeline.target, next_name(index.name)
        query = sql.SQL(BUILD).format(
            unique=sql.SQL("unique " if index.is_unique else ""),
            name=sql.Identifier(name),
            table=table.identifier,
            method=sql.Identifier(index.method),
            element=self._element(connection, index),
            parameters=index.parameters,
        )
        try:
            # By its name: others of this table are a user's own.
            drop_unusable(connection, table, name)
            with dropped_if_broken_off(connection, table, name):
                connection.execute(query)
        except psycopg.Error as error:
            raise UsageError(
                f"cannot build index {index.name} on {target_of(self.successor)}:"
                f" {first_line(error)}; drop it, and switch again"
            ) from None

    def _element(self, connection: Connection, index: _Index) -> sql.Composable:
        if index.quantize != "none":
            return element(connection, self.successor, index.quantize)
        old_type, new_type = self.pipeline.spec.vector_type, self.successor.spec.vector_type
        operator_class = index.operator_class.replace(f"{old_type}_", f"{new_type}_")
        return sql.SQL("{} {}").format(
            sql.Identifier(self.successor.spec.columns.embedding),
            sql.Identifier(index.operator_schema, operator_class),
        )

    def _rename(self, connection: Connection, name: str, other: str) -> None:
        query = sql.SQL("alter table {} rename column {} to {}")
        table = self.pipeline.target.identifier
        connection.execute(query.format(table, sql.Identifier(name), sql.Identifier(other)))

    def _take_name(self, connection: Connection, index: _Index) -> None:
        schema = self.pipeline.target.schema
        query = sql.SQL("alter index if exists {} rename to {}").format(
            sql.Identifier(schema, next_name(index.name)), sql.Identifier(index.name)
        )
        connection.execute(query)


def _indexes(connection: Connection, column: dict[str, str]) -> list[_Index]:
    return [_Index(*row) for row in connection.execute(INDEXES, column)]
