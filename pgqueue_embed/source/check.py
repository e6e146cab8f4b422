"""Checks a source: a table or view with a unique key, and text that this role may read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from pgqueue_embed.db.errors import first_line, is_row_security
from pgqueue_embed.db.names import Table, did_you_mean
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.columns import BASE_TYPE, Column
from pgqueue_embed.pipeline.document import Document
from pgqueue_embed.pipeline.key import KEY_TYPES, Key
from pgqueue_embed.pipeline.row import SourceShape
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.source.condition import refusal
from pgqueue_embed.source.trust import check_trust

# Types of text, numbers, truth, enumeration, time and addresses, and of a few others, have one
# text whatever the settings of a session are.
PLAIN_CATEGORIES = "SNBEDI"
PLAIN_TYPES = ("uuid", "json", "jsonb", "text[]", "character varying[]")
UNSETTLED_TYPES = ("money",)


@dataclass(frozen=True)
class ColumnFacts:
    """The type beneath the domain, if it is one, and what else tells how it may be used."""

    type: str
    category: str
    deterministic: bool


def check_source(connection: Connection, spec: PipelineSpec) -> SourceShape:
    """Return key and document of the source with the types of their columns.

    Raises UsageError, naming the way out, when the table or a column is absent, may not be read,
    the key is of a type whose text is not its identity, or is not unique, a column has no text,
    or the condition is none.
    """
    check_trust(connection, spec)
    found = types_of(connection, spec)
    used = (*spec.id_fields, *spec.recipe.names(), *spec.copy_columns)
    _check_readable(connection, spec.source, used)
    _check_unique(connection, spec.source, spec.id_fields)
    if spec.foreign_key:
        _check_referable(connection, spec.source, spec.id_fields)
    if spec.where is not None:
        check_condition(connection, spec.source, spec.where)
    return found


def types_of(connection: Connection, spec: PipelineSpec) -> SourceShape:
    """Return key and document of the source as the catalogue has their columns.

    Raises UsageError for a table or column that is not there, or cannot be used so.
    """
    return shape_of(spec, table_columns(connection, spec.source))


def shape_of(spec: PipelineSpec, columns: Mapping[str, ColumnFacts]) -> SourceShape:
    """Return key and document of a source that has `columns`, by name; raises UsageError."""
    table, recipe = spec.source, spec.recipe
    for name in (*spec.id_fields, *recipe.names(), *spec.copy_columns):
        if name not in columns:
            known = ", ".join(columns)
            meant = did_you_mean(name, columns)
            raise UsageError(f"{table} has no column '{name}'{meant}; it has {known}")
    for name in recipe.names():
        _check_text(table, name, columns[name], alone=name in recipe.text_fields)
    for name in spec.copy_columns:
        _check_text(table, name, columns[name], alone=False)
    types = {name: _key_type(table, name, columns[name]) for name in spec.id_fields}
    key = Key(tuple(Column(name=name, type=type_) for name, type_ in types.items()))
    texts, copied = (
        tuple(Column(name=name, type=columns[name].type) for name in names)
        for names in (recipe.names(), spec.copy_columns)
    )
    return SourceShape(key=key, document=Document(recipe=recipe, columns=texts, copied=copied))


def check_condition(connection: Connection, table: Table, where: str) -> None:
    """Raise UsageError unless `where` is a condition over the columns of `table`."""
    relation = sql.SQL("{} as source").format(table.identifier)
    refused = refusal(connection, relation, where)
    if refused is not None:
        raise UsageError(f"--where is not a condition over {table}: {refused}")


def table_columns(connection: Connection, table: Table) -> dict[str, ColumnFacts]:
    """Return the columns of a source by name; raises UsageError if it is not there."""
    query = sql.SQL(
        """
        select
            attname,
            format_type({base_type}, null),
            pg_type.typcategory,
            coalesce(pg_collation.collisdeterministic, true)
        from pg_class
        join pg_namespace on pg_namespace.oid = relnamespace
        join pg_attribute on attrelid = pg_class.oid
        join pg_type on pg_type.oid = atttypid
        left join pg_collation on pg_collation.oid = attcollation
        where nspname = %s
            and relname = %s
            and relkind in ('r', 'p', 'v', 'm', 'f')
            and attnum > 0
            and not attisdropped
        order by attnum
        """
    ).format(base_type=sql.SQL(BASE_TYPE))
    rows = connection.execute(query, (table.schema, table.name)).fetchall()
    if not rows:
        raise UsageError(
            f"there is no table or view {table}{connection.place_if_private}"
            f"{_similar(connection, table)}"
        )
    return {name: ColumnFacts(type_, category, ok) for name, type_, category, ok in rows}


def _similar(connection: Connection, table: Table) -> str:
    rows = connection.execute(
        """
        select format('%%s.%%s', nspname, relname)
        from pg_class
        join pg_namespace on pg_namespace.oid = relnamespace
        where relkind in ('r', 'p', 'v', 'm', 'f')
            and nspname not in ('pg_catalog', 'information_schema', 'pgembed')
            and nspname !~ '^pg_(toast|temp)'
        order by nspname = %s desc, 1
        limit 10000
        """,
        (table.schema,),
    ).fetchall()
    names = [name for (name,) in rows]
    same = [name for name in names if name.partition(".")[2].lower() == table.name.lower()]
    if same:
        return f"; did you mean {' or '.join(same[:3])}?"
    meant = did_you_mean(str(table), names)
    if not names:
        return ", and this database has no other yet; name one of it: schema.table"
    if meant:
        return meant
    some = ", ".join(names[:5])
    return f"; there is {some}{f' and {len(names) - 5:,} more' if len(names) > 5 else ''}"


def _check_readable(connection: Connection, table: Table, columns: Sequence[str]) -> None:
    readable = sql.SQL("select {} from {} limit 0").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)), table.identifier
    )
    try:
        connection.execute(readable)
    except psycopg.errors.InsufficientPrivilege as error:
        if is_row_security(error):
            raise UsageError(
                f"this role may not read all of {table}: {first_line(error)}"
            ) from None
        raise UsageError(
            f"this role may not read {table}; grant usage on its schema and select on the table"
        ) from None


def _check_text(table: Table, name: str, column: ColumnFacts, *, alone: bool) -> None:
    if alone and column.category != "S":
        raise UsageError(
            f"{table}.{name} is of type {column.type}; the text column must hold text"
            " (other columns can take part in a --template)"
        )
    plain = column.category in PLAIN_CATEGORIES or column.type in PLAIN_TYPES
    if not plain or column.type in UNSETTLED_TYPES:
        raise UsageError(
            f"{table}.{name} is of type {column.type}, whose text depends on a session's settings;"
            " make a view with a text column in its place"
        )


def _key_type(table: Table, name: str, column: ColumnFacts) -> str:
    if column.type not in KEY_TYPES or not column.deterministic:
        what = column.type if column.deterministic else "text with a nondeterministic collation"
        raise UsageError(
            f"{table}.{name} is of type {what}, in which one key has several spellings;"
            f" a key may be {', '.join(KEY_TYPES)}"
        )
    return KEY_TYPES[column.type]


NAMES_COVER_INDEX = sql.SQL("""(
    select bool_and(coalesce(attname = any(%(names)s), false))
    from unnest(indkey::smallint[]) with ordinality as part (attnum, position)
    left join pg_attribute on pg_attribute.attrelid = indrelid and pg_attribute.attnum = part.attnum
    where position <= indnkeyatts
)""")

# A unique index on some of the columns makes them unique together with any others, but not in the
# tables that inherit from this one (partitions do not: theirs is one with the parent's).
UNIQUE = """
select
    relkind in ('v', 'f', 'm'),
    relkind <> 'p' and exists (select from pg_inherits where inhparent = pg_class.oid),
    exists (
        select
        from pg_index
        where indrelid = pg_class.oid
            and indisunique and indisvalid and indpred is null
            and {names_cover_index}
    )
from pg_class
join pg_namespace on pg_namespace.oid = relnamespace
where nspname = %(schema)s and relname = %(table)s
"""


def _check_unique(connection: Connection, table: Table, names: Sequence[str]) -> None:
    values = {"names": list(names), "schema": table.schema, "table": table.name}
    query = sql.SQL(UNIQUE).format(names_cover_index=NAMES_COVER_INDEX)
    row = connection.execute(query, values).fetchone()
    without_index, inherited, indexed = row or (False, False, False)
    if indexed and not inherited:
        return
    listed = ", ".join(names)
    if indexed or without_index:
        twice = _key_that_occurs_twice(connection, table, names)
        if twice is None:
            return
        heirs = ", those of tables that inherit from it included" if inherited else ""
        raise UsageError(
            f"{table} has several rows with the same {listed}, such as {twice}{heirs}; make it"
            " unique, or name another key with --id-field"
        )
    begun = _invalid_index(connection, table, names)
    raise UsageError(
        f"{table} has no unique key on {listed}"
        f"{f'; add one (create unique index on {table} ({listed}))' if begun is None else begun} or"
        " name another key with --id-field"
    )


# A build that two rows with one key have ended leaves one, too.
INVALID = """
select format('%%I.%%I', nspname, index.relname)
from pg_index
join pg_class as index on index.oid = indexrelid
join pg_namespace on pg_namespace.oid = index.relnamespace
where indrelid = %(quoted)s::regclass
    and indisunique and not indisvalid and indpred is null
    and {names_cover_index}
order by 1
limit 1
"""


def _invalid_index(connection: Connection, table: Table, names: Sequence[str]) -> str | None:
    """Return what is wrong with an index that would make `names` unique, and the way out."""
    query = sql.SQL(INVALID).format(names_cover_index=NAMES_COVER_INDEX)
    values = {"names": list(names), "quoted": table.quoted}
    row = connection.execute(query, values).fetchone()
    if row is None:
        return None
    return (
        f": index {row[0]} is invalid, since its build was cut short or found rows with the same"
        f" key; reindex index concurrently {row[0]}, once there are none,"
    )


# What PostgreSQL wants of the table that a foreign key points at.
REFERABLE = """
select
    relkind in ('r', 'p'),
    has_table_privilege(pg_class.oid, 'references'),
    exists (
        select
        from pg_index
        where indrelid = pg_class.oid
            and indisunique and indisvalid and indimmediate and indpred is null
            and indnkeyatts = cardinality(%(names)s::text[])
            and {names_cover_index}
    )
from pg_class
join pg_namespace on pg_namespace.oid = relnamespace
where nspname = %(schema)s and relname = %(table)s
"""


def _check_referable(connection: Connection, table: Table, names: Sequence[str]) -> None:
    values = {"names": list(names), "schema": table.schema, "table": table.name}
    query = sql.SQL(REFERABLE).format(names_cover_index=NAMES_COVER_INDEX)
    is_table, allowed, unique = connection.row(query, values)
    listed = ", ".join(names)
    if not is_table:
        raise UsageError(f"--foreign-key: {table} is not a table; leave the option out")
    if not unique:
        raise UsageError(
            f"--foreign-key: {table} has no unique constraint on exactly {listed}; add one"
            f" (alter table {table} add unique ({listed})), or leave the option out"
        )
    if not allowed:
        raise UsageError(
            f"--foreign-key: this role may not refer to {table}; its owner: grant references on"
            f" {table} to it"
        )


def _key_that_occurs_twice(
    connection: Connection, table: Table, names: Sequence[str]
) -> str | None:
    query = sql.SQL(
        "select concat_ws(', ', {key}) from {table} group by {key} having count(*) > 1 limit 1"
    ).format(table=table.identifier, key=sql.SQL(", ").join(map(sql.Identifier, names)))
    row = connection.execute(query).fetchone()
    return None if row is None else str(row[0])
