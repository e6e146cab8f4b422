"""The user's source table: what it must be, and how its records are read.

The document of a record and its hash come from one SQL expression, evaluated by the server, so
that text and hash cannot disagree and unchanged text never leaves the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from pgqueue_embed.connect import Connection, first_line
from pgqueue_embed.errors import PipelineFault, UsageError
from pgqueue_embed.settings import Pipeline, Table

# Types whose text is their identity: numeric is not one, since 1 and 1.00 are one key and two
# texts. The queue's key is cast to the type on the right.
KEY_TYPES = {
    "smallint": "smallint",
    "integer": "integer",
    "bigint": "bigint",
    "uuid": "uuid",
    "date": "date",
    "timestamp with time zone": "timestamp with time zone",
    "text": "text",
    "character varying": "text",
}


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """One record as read before the model runs; all of it a hint until the mutex is held.

    `document` is None where the text was not fetched: the record is unchanged, or it lies
    beyond the bytes that this claim takes.
    """

    key: str
    document: str | None
    document_hash: bytes
    unchanged: bool
    beyond_limit: bool


def check_source(connection: Connection, table: Table, id_field: str, text_field: str) -> str:
    """Return the type that the keys of `table` are cast to.

    Raises UsageError, naming the way out, when the table or a column is absent, may not be read,
    the key is of a type whose text is not its identity, or is not unique.
    """
    columns = _columns(connection, table)
    for name in (id_field, text_field):
        if name not in columns:
            known = ", ".join(columns)
            raise UsageError(f"{table} has no column '{name}'; it has {known}")
    _check_readable(connection, table, (id_field, text_field))
    _check_text(table, text_field, columns[text_field])
    id_type = _key_type(table, id_field, columns[id_field])
    _check_unique(connection, table, id_field)
    return id_type


@dataclass(frozen=True)
class _Column:
    type: str
    category: str
    deterministic: bool


def _columns(connection: Connection, table: Table) -> dict[str, _Column]:
    rows = connection.execute(
        """
        select
            attname,
            format_type(coalesce(nullif(pg_type.typbasetype, 0), pg_type.oid), null),
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
        """,
        (table.schema, table.name),
    ).fetchall()
    if not rows:
        raise UsageError(f"there is no table or view {table}{_similar(connection, table)}")
    return {name: _Column(type_, category, ok) for name, type_, category, ok in rows}


def _similar(connection: Connection, table: Table) -> str:
    rows = connection.execute(
        """
        select format('%%s.%%s', nspname, relname)
        from pg_class
        join pg_namespace on pg_namespace.oid = relnamespace
        where relkind in ('r', 'p', 'v', 'm', 'f')
            and nspname not in ('pg_catalog', 'information_schema', 'pgembed')
            and (lower(relname) = lower(%s) or nspname = %s)
        order by lower(relname) = lower(%s) desc, 1
        limit 5
        """,
        (table.name, table.schema, table.name),
    ).fetchall()
    return f"; there is {', '.join(name for (name,) in rows)}" if rows else ""


def _check_readable(connection: Connection, table: Table, columns: Sequence[str]) -> None:
    readable = sql.SQL("select {} from {} limit 0").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier(table.schema, table.name)
    )
    try:
        connection.execute(readable)
    except psycopg.errors.InsufficientPrivilege:
        raise UsageError(
            f"this role may not read {table}; grant usage on its schema and select on the table"
        ) from None


def _check_text(table: Table, name: str, column: _Column) -> None:
    if column.category != "S":
        raise UsageError(f"{table}.{name} is of type {column.type}; the text column must hold text")


def _key_type(table: Table, name: str, column: _Column) -> str:
    if column.type not in KEY_TYPES or not column.deterministic:
        what = column.type if column.deterministic else "text with a nondeterministic collation"
        raise UsageError(
            f"{table}.{name} is of type {what}, in which one key has several spellings;"
            f" a key may be {', '.join(KEY_TYPES)}"
        )
    return KEY_TYPES[column.type]


def _check_unique(connection: Connection, table: Table, id_field: str) -> None:
    row = connection.execute(
        """
        select
            relkind in ('v', 'f', 'm'),
            exists (
                select 1
                from pg_index
                join pg_attribute on attrelid = indrelid and attnum = indkey[0]
                where indrelid = pg_class.oid
                    and indisunique and indisvalid
                    and indnkeyatts = 1 and indpred is null
                    and attname = %s
            )
        from pg_class
        join pg_namespace on pg_namespace.oid = relnamespace
        where nspname = %s and relname = %s
        """,
        (id_field, table.schema, table.name),
    ).fetchone()
    without_index, indexed = row or (False, False)
    if indexed or (without_index and not _has_duplicates(connection, table, id_field)):
        return
    raise UsageError(
        f"{table} has no unique key on {id_field}; add one"
        f" (create unique index on {table} ({id_field})) or name another column with --id-field"
    )


def _has_duplicates(connection: Connection, table: Table, id_field: str) -> bool:
    query = sql.SQL("select 1 from {table} group by {id} having count(*) > 1 limit 1").format(
        table=sql.Identifier(table.schema, table.name), id=sql.Identifier(id_field)
    )
    return connection.execute(query).fetchone() is not None


def source_names(pipeline: Pipeline) -> dict[str, sql.Composable]:
    """Return the SQL names and expressions of a pipeline that statements over its source share.

    `document` and `document_hash` are expressions over the alias ``source``; NULL and empty text
    have one hash.
    """
    document = sql.SQL("source.{}::text").format(sql.Identifier(pipeline.text_field))
    return {
        "source": sql.Identifier(pipeline.source.schema, pipeline.source.name),
        "target": sql.Identifier(pipeline.target.schema, pipeline.target.name),
        "id": sql.Identifier(pipeline.id_field),
        "id_type": sql.SQL(pipeline.id_type),  # one of KEY_TYPES' values, never a user's text
        "fulltext_id": sql.Identifier(pipeline.columns.fulltext_id),
        "document": document,
        "document_hash": sql.SQL("sha256(convert_to(coalesce({}, ''), 'UTF8'))").format(document),
    }


# The listed keys with their records, the hint whether anything is to be done, and as many
# documents as fit the byte limit (the first one always does). The length of a stored text is
# known without reading it. The ledger is looked up key by key: joined as a table, with statistics
# from when it was young, it is read as a whole for every key.
READ = """
with listed as (
    select key, embed_again, position
    from unnest(%(keys)s::text[], %(embed_again)s::boolean[])
        with ordinality as listed (key, embed_again, position)
),
hashed as (
    select
        listed.key,
        listed.embed_again,
        listed.position,
        {document} as document,
        {document_hash} as document_hash
    from listed
    join {source} as source on source.{id} = listed.key::{id_type}
),
hinted as (
    select
        hashed.*,
        case
            when ledger.key is null or hashed.embed_again then false
            when ledger.document_hash is distinct from hashed.document_hash then false
            when ledger.generation is distinct from %(generation)s then false
            when ledger.state = 'empty' then true
            when ledger.state = 'embedded' then ledger.chunks = (
                select count(*)
                from {target} as target
                where target.{fulltext_id} = hashed.key::{id_type}
            )
            else false
        end as unchanged
    from hashed
    left join lateral (
        select key, state, generation, document_hash, chunks
        from pgembed.records
        where pipeline_id = %(pipeline_id)s and records.key = hashed.key
        limit 1
    ) as ledger on true
),
measured as (
    select
        hinted.*,
        coalesce(
            sum(octet_length(document)) filter (where not unchanged)
                over (order by position rows between unbounded preceding and 1 preceding),
            0
        ) as bytes_before
    from hinted
)
select
    key,
    case when not unchanged and bytes_before <= %(limit_bytes)s then coalesce(document, '') end,
    document_hash,
    unchanged,
    not unchanged and bytes_before > %(limit_bytes)s
from measured
order by position
"""


def read_records(
    connection: Connection,
    pipeline: Pipeline,
    keys: Sequence[str],
    embed_again: Sequence[bool],
    *,
    limit_bytes: int,
) -> list[SourceRecord]:
    """Return the records of `keys` that exist, in that order, with up to `limit_bytes` of text.

    Runs in autocommit, apart from the claim's transaction: nothing of the user's stays locked.
    Raises PipelineFault when the source or target has lost a table or column, or cannot be read.
    """
    query = sql.SQL(READ).format(**source_names(pipeline))
    values = {
        "keys": list(keys),
        "embed_again": list(embed_again),
        "generation": pipeline.generation,
        "pipeline_id": pipeline.id,
        "limit_bytes": limit_bytes,
    }
    try:
        rows = connection.execute(query, values).fetchall()
    except UNREADABLE as error:
        raise PipelineFault(first_line(error)) from None
    return [
        SourceRecord(
            key=key, document=text, document_hash=hash_, unchanged=unchanged, beyond_limit=beyond
        )
        for key, text, hash_, unchanged, beyond in rows
    ]


# Class 42: a table, column, type or right that was there at create is not there now.
PIPELINE_FAULTS = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.DatatypeMismatch,
    psycopg.errors.WrongObjectType,
)

# Reading also fails for a key beyond the pipeline's type, or in an expression of the user's view:
# no single record can be told to be at fault, and none can be read.
UNREADABLE = (*PIPELINE_FAULTS, psycopg.DataError)
