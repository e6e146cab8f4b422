"""Keys that have several rows: of a view whose join became 1:n, or with tables that inherit.

Which row is meant is unknown. Such a record becomes a dead letter, and is embedded once its
key has one row again: all rows take part in its hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from psycopg import sql

from pgqueue_embed.log import get_logger
from pgqueue_embed.pipeline.pipeline import Pipeline

# The same as `hash_of_rows`.
HASH_OF_ROWS = """(
    select case
        when count(*) = 1 then (array_agg(hash))[1]
        else sha256(string_agg(hash, '' order by hash))
    end
    from (
        select {document_hash} as hash from {source} as source where {source_key} = {slice_key}
    ) as hashed
)"""


def hash_of_rows(hashes: Sequence[bytes]) -> bytes:
    """Return the hash of a record: that of its row, or of them all where its key has several."""
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256(b"".join(sorted(hashes))).digest()


# Of a view, say, or with the tables that inherit: where no index makes sure.
KEYS_THAT_OCCUR_TWICE = """
case
    when not exists (
        select
        from pg_class
        where oid = {source_name}::regclass
            and (relkind = 'p' or relkind = 'r' and not relhassubclass)
    )
    then array(
        select {slice_key_text}
        from slice
        group by {slice_columns}
        having count(*) > 1
        order by {slice_order}
        limit 3
    )
end
"""


def keys_that_occur_twice(
    pipeline: Pipeline, names: Mapping[str, sql.Composable]
) -> sql.Composable:
    """Return the keys of the CTE ``slice`` that occur more than once, as SQL; null if none can."""
    return sql.SQL(KEYS_THAT_OCCUR_TWICE).format(
        **names, source_name=sql.Literal(pipeline.source.quoted)
    )


def warn_of(pipeline: Pipeline, keys: Sequence[str] | None) -> None:
    """Name the keys, if there are any, in the log."""
    if keys:
        get_logger().warning(
            "keys have several rows each, and become dead letters; make them unique",
            source=str(pipeline.source),
            such_as=", ".join(keys),
        )
