"""Checks that a table of vectors can be adopted, and lists the columns and indexes it lacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from psycopg import sql
from psycopg.rows import dict_row

from pgqueue_embed.db.names import Table, quoted
from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.vectors import ELEMENT, VectorCodec
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.key import Key
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.pipeline.target_columns import TargetColumns


@dataclass(frozen=True, kw_only=True)
class StoredColumn:
    """A column of a table of vectors; `limit` is what stands in parentheses after its type, or -1.

    `is_filled` says that a row gets a value there without one being given.
    """

    name: str
    type: str
    limit: int
    not_null: bool
    is_filled: bool
    is_generated: bool
    deterministic: bool


@dataclass(frozen=True, kw_only=True)
class StoredTable:
    """A table that can be adopted: its vector type, and the columns it lacks, by meaning.

    `dimensions` is None for vectors that may have any number of them, row by row.
    """

    vector_type: str
    dimensions: int | None
    lacking: Mapping[str, str]


# What each meaning needs, and the type that it is made with where it is missing. `id` is not made:
# nothing reads it, and to number the rows would rewrite the table.
INTEGERS = ("integer", "bigint")
TEXTS = ("text", "character varying")
TYPES = {
    "chunk_id": TEXTS,
    "chunk_index": INTEGERS,
    "start_char": INTEGERS,
    "end_char": INTEGERS,
    "tokens": INTEGERS,
    "created_at": ("timestamp with time zone",),
}
MADE = {meaning: types[0] for meaning, types in TYPES.items()}

# Types of a table's key that hold each key of the source, and have one text for it.
WIDER = {
    "smallint": ("smallint", "integer", "bigint"),
    "integer": ("integer", "bigint"),
    "text": TEXTS,
}

ARRAYS = ("real[]", "double precision[]", "numeric[]")


def check_table(connection: Connection, spec: PipelineSpec, key: Key) -> StoredTable:
    """Return what the target of `spec` is and lacks, once it is sure that chunks can go there.

    Raises UsageError, naming the way out, for anything else.
    """
    _check_kind(connection, spec.target)
    columns = _columns(connection, spec.target)
    names = spec.columns
    for meaning, name in (
        *(("fulltext_id", name) for name in names.fulltext_id),
        *(("text_chunk", names.text_chunk), ("embedding", names.embedding)),
    ):
        if name not in columns:
            raise UsageError(
                f"{spec.target} has no column '{name}'; it has {', '.join(columns)}: name the one"
                f" that it is there, --target-column {meaning}=NAME"
            )
    _check_key(spec, key, columns)
    _check_text(spec.target, columns[names.text_chunk])
    _check_kept(spec, columns)
    _check_others(spec, columns)
    _check_rights(connection, spec.target)
    _check_references(connection, spec.target)
    _check_keys_are_there(connection, spec, columns)
    vector = _check_vector(connection, spec, columns[names.embedding])
    values = vars(names)
    return StoredTable(
        vector_type=vector.type,
        dimensions=None if vector.limit == -1 else vector.limit,
        lacking={meaning: values[meaning] for meaning in MADE if values[meaning] not in columns},
    )


KIND = """
select
    relkind = 'r' and not relispartition and not exists (
        select from pg_inherits where inhparent = pg_class.oid or inhrelid = pg_class.oid
    ) as is_plain,
    (
        select name
        from pgembed.pipelines
        where target_schema = %(schema)s and target_table = %(table)s
    ) as pipeline
from pg_class
where oid = to_regclass(%(quoted)s)
"""


def _check_kind(connection: Connection, table: Table) -> None:
    values = {"schema": table.schema, "table": table.name, "quoted": table.quoted}
    row = connection.execute(KIND, values).fetchone()
    if row is None:
        raise UsageError(
            f"there is no table {table} to adopt; a new one is made by: pgembed create"
        )
    is_plain, pipeline = row
    if pipeline is not None:
        raise UsageError(f"{table} is the target of pipeline '{pipeline}' already")
    if not is_plain:
        raise UsageError(
            f"{table} is a view or partitioned; only a plain table can be adopted: copy its rows"
            " into one, or embed anew with pgembed create, which makes partitioned tables too:"
            " --partition-by"
        )


COLUMNS = """
select
    attname as name,
    case when typname in ('vector', 'halfvec') then typname::text
        else format_type(atttypid, null) end as type,
    atttypmod as limit,
    attnotnull as not_null,
    atthasdef or attidentity <> '' as is_filled,
    attgenerated <> '' or attidentity = 'a' as is_generated,
    coalesce(collisdeterministic, true) as deterministic
from pg_attribute
join pg_type on pg_type.oid = atttypid
left join pg_collation on pg_collation.oid = attcollation
where attrelid = %s::regclass and attnum > 0 and not attisdropped
order by attnum
"""


def _columns(connection: Connection, table: Table) -> dict[str, StoredColumn]:
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(COLUMNS, (table.quoted,)).fetchall()
    return {row["name"]: StoredColumn(**row) for row in rows}


def _check_key(spec: PipelineSpec, key: Key, columns: Mapping[str, StoredColumn]) -> None:
    for name, source in zip(spec.columns.fulltext_id, key.columns, strict=True):
        column = columns[name]
        fits = column.type in WIDER.get(source.type, (source.type,))
        if fits and column.deterministic and column.limit == -1:
            continue
        raise UsageError(
            f"{spec.target}.{name} is of type {column.type} and {spec.source}.{source.name} of type"
            f" {source.type}; convert it (this rewrites the table):"
            f" {_conversion(spec.target, name, source.type)}"
        )


def _check_text(table: Table, column: StoredColumn) -> None:
    if column.type not in TEXTS or column.limit != -1:
        raise UsageError(
            f"{table}.{column.name} is of type {column.type}"
            f"{' of limited length' if column.type in TEXTS else ''}; chunks are texts of any"
            f" length: {_conversion(table, column.name, 'text')}"
        )


def _check_vector(connection: Connection, spec: PipelineSpec, column: StoredColumn) -> StoredColumn:
    if column.type not in ELEMENT:
        hint = "name the column of vectors: --target-column embedding=NAME"
        if column.type in ARRAYS:
            schema = quoted(VectorCodec(connection).schema)
            kind = f"{schema}.vector"
            hint = f"convert it: {_conversion(spec.target, column.name, kind)}"
        raise UsageError(f"{spec.target}.{column.name} is of type {column.type}; {hint}")
    return column


def check_dimensions(spec: PipelineSpec, table: StoredTable, dimensions: int) -> None:
    """Raise UsageError unless the vectors of `table` may have the `dimensions` of the model."""
    if table.dimensions not in (None, dimensions):
        raise UsageError(
            f"{spec.target}.{spec.columns.embedding} holds vectors of {table.dimensions}"
            f" dimensions, and the model gives {dimensions}: they come from another model; name it"
            " with --model, or embed anew with pgembed create"
        )


def _check_kept(spec: PipelineSpec, columns: Mapping[str, StoredColumn]) -> None:
    """Check the columns that pgembed fills besides, where they are there."""
    for meaning, types in TYPES.items():
        column = columns.get(vars(spec.columns)[meaning])
        # A date of creation is never written, whatever its type.
        if column is None or meaning == "created_at":
            continue
        if column.type in types and column.limit == -1:
            continue
        raise UsageError(
            f"{spec.target}.{column.name} is of type {column.type}, and {meaning} is kept as"
            f" {types[0]}; give it a column of its own:"
            f" --target-column {meaning}=pgembed_{column.name}"
        )


def _check_others(spec: PipelineSpec, columns: Mapping[str, StoredColumn]) -> None:
    ours = set(_written(spec.columns))
    for column in columns.values():
        if column.name in ours and column.is_generated:
            raise UsageError(
                f"{spec.target}.{column.name} is generated, and pgembed writes it; give it another"
                " column: --target-column MEANING=NAME"
            )
        if column.name not in ours and column.not_null and not column.is_filled:
            raise UsageError(
                f"{spec.target}.{column.name} is not null, and a new row of pgembed would have"
                f" nothing there; give it a default, or: alter table {spec.target.quoted} alter"
                f" column {quoted(column.name)} drop not null"
            )


def _written(columns: TargetColumns) -> Iterator[str]:
    yield from (name for name in columns.names() if name not in (columns.id, columns.created_at))


RIGHTS = ("select", "insert", "update", "delete")


def _check_rights(connection: Connection, table: Table) -> None:
    lacking = [
        right
        for right in RIGHTS
        if connection.execute(
            "select has_table_privilege(%s::regclass, %s)", (table.quoted, right)
        ).fetchone()
        != (True,)
    ]
    if lacking:
        raise UsageError(
            f"this role lacks {', '.join(lacking)} on {table}; its owner can grant that"
        )


REFERENCES = """
select conname, conrelid::regclass::text
from pg_constraint
where confrelid = %s::regclass and contype = 'f'
order by 1
limit 1
"""


def _check_references(connection: Connection, table: Table) -> None:
    row = connection.execute(REFERENCES, (table.quoted,)).fetchone()
    if row is not None:
        raise UsageError(
            f"foreign key {row[0]} of {row[1]} refers to {table}, whose rows are replaced when a"
            " text changes; drop it first"
        )


def _check_keys_are_there(
    connection: Connection, spec: PipelineSpec, columns: Mapping[str, StoredColumn]
) -> None:
    nullable = [name for name in spec.columns.fulltext_id if not columns[name].not_null]
    if not nullable:
        return
    condition = sql.SQL(" or ").join(
        sql.SQL("{} is null").format(sql.Identifier(name)) for name in nullable
    )
    query = sql.SQL("select exists (select from {} where {})").format(
        spec.target.identifier, condition
    )
    if connection.execute(query).fetchone() == (True,):
        raise UsageError(
            f"rows of {spec.target} have no {' or '.join(nullable)}, so that it is unknown of"
            f" which record they are; delete them: {condition.as_string(connection)}"
        )


def _conversion(table: Table, column: str, type_: str) -> str:
    name = quoted(column)
    return f"alter table {table.quoted} alter column {name} type {type_} using {name}::{type_}"
