"""Reading the stored chunks of records, and the vectors of single rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from pgqueue_embed.adopt.judge import StoredRow
from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.vectors import LENGTH_TOLERANCE, VectorCodec
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.source.read import source_names
from pgqueue_embed.target import column_names, target_of

# A shorter vector has no direction worth the name.
SHORTEST_NORM = 1e-6

# A row and its version: whoever updates a row gives it another place or transaction.
VERSION = "target.ctid::text || ' ' || target.xmin::text"

# The inner product is there for both types in every version of pgvector, a norm is not. It is
# negative, as pgvector has it. A length of null is one without a vector, or of other dimensions.
STORED = """
with rows as (
    select
        {target_key_text} as key,
        {version} as version,
        target.{text_chunk} as text,
        case
            when {extension}.vector_dims(target.{embedding}) = %(dimensions)s
            then sqrt(greatest(
                -(target.{embedding} operator({extension}.<#>) target.{embedding}), 0
            ))
        end as norm,
        row_number() over (order by {order}) as position
    from {target} as target
    where {key_is_among_keys}
)
select
    key,
    version,
    text,
    coalesce(norm, 0) > %(shortest)s,
    coalesce(abs(norm - 1) < %(tolerance)s, false)
from rows
order by position
"""


def read_stored(
    connection: Connection, pipeline: Pipeline, keys: Sequence[str]
) -> dict[str, list[StoredRow]]:
    """Return the chunks stored for the records `keys`, in order as far as the table knows one."""
    columns = [sql.Identifier("target", name) for name in _order(connection, pipeline)]
    query = sql.SQL(STORED).format(
        **table_names(connection, pipeline),
        order=sql.SQL(", ").join([*columns, sql.SQL("target.ctid")]),
    )
    values = {
        "keys": list(keys),
        "dimensions": pipeline.dimensions,
        "shortest": SHORTEST_NORM,
        "tolerance": LENGTH_TOLERANCE,
    }
    stored: dict[str, list[StoredRow]] = {}
    for key, version, text, usable, has_unit_norm in connection.execute(query, values):
        chunk = StoredRow(version=version, text=text, usable=usable, has_unit_norm=has_unit_norm)
        stored.setdefault(key, []).append(chunk)
    return stored


def _order(connection: Connection, pipeline: Pipeline) -> list[str]:
    """Return the columns by which chunks are in order, those of them that the table has."""
    rows = connection.execute(
        "select attname from pg_attribute where attrelid = %s::regclass and attname = any(%s)",
        (pipeline.target.quoted, [pipeline.spec.columns.chunk_index, pipeline.spec.columns.id]),
    ).fetchall()
    there = {name for (name,) in rows}
    return [
        each
        for each in (pipeline.spec.columns.chunk_index, pipeline.spec.columns.id)
        if each in there
    ]


def table_names(connection: Connection, pipeline: Pipeline) -> dict[str, sql.Composable]:
    """Return the SQL names that statements over a table to adopt share; its alias is ``target``."""
    return {
        **column_names(pipeline.spec.columns),
        **source_names(pipeline),
        "target": pipeline.target.identifier,
        "key_is_among_keys": target_of(pipeline).key_is_among,
        "version": sql.SQL(VERSION),
        "extension": sql.Identifier(VectorCodec(connection).schema),
    }


VECTORS = """
select {version}, target.{embedding}::real[]
from {target} as target
where target.ctid = any(%(places)s::tid[])
"""


def read_vectors(
    connection: Connection, pipeline: Pipeline, versions: Sequence[str]
) -> NDArray[np.float32]:
    """Return the vectors of the rows `versions`, float32 of shape (rows, dimensions)."""
    query = sql.SQL(VECTORS).format(**table_names(connection, pipeline))
    places = [ctid_of(version) for version in versions]
    vectors = dict(connection.execute(query, {"places": places}).fetchall())
    return np.array([vectors[version] for version in versions], np.float32)


def ctid_of(version: str) -> str:
    """Return the place of a row in its table, out of its version."""
    return version.rpartition(" ")[0]
