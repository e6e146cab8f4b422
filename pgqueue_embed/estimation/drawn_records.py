"""Draws records of a source at random: of a table by blocks, however large it is.

What cannot be drawn from by blocks, such as a view, is read as a whole, its texts left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from psycopg import sql

from pgqueue_embed.chunking import Context
from pgqueue_embed.db.faults import on_users_tables
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.source.read import condition, source_names
from pgqueue_embed.source.trust import trusting

# 32 MB are read of a table of any size; by so many blocks the number of rows is known to 3 %.
BLOCKS = 4_096

# Where fewer records than this are drawn, such as by a condition that few rows meet, more blocks
# are.
FEWEST_RECORDS = 1_000
MORE_BLOCKS = 8

MOST_RECORDS = 20_000

# Of a normal distribution, 95 % lie within so many standard deviations.
CONFIDENCE = 1.96


@dataclass(frozen=True, kw_only=True)
class DrawnRecords:
    """Keys of records in random order, and how many records there are about.

    `margin` is the half width of the 95 % interval of `records`, as a share of it; 0 where they
    were counted.
    """

    keys: Sequence[str]
    records: float
    margin: float


# Partitions and children are read along; a foreign table is not drawn from, nor a view.
TABLES = """
with recursive tables (oid) as (
    select to_regclass(%s)::oid
    union
    select inhrelid from tables join pg_inherits on inhparent = tables.oid
)
select
    coalesce(sum(pg_relation_size(tables.oid)), 0)::bigint
        / current_setting('block_size')::integer,
    bool_and(relkind in ('r', 'p', 'm'))
from tables
join pg_class on pg_class.oid = tables.oid
"""

DRAW = """
with drawn as materialized (
    select {source_key_text} as key
    from {table} as source {sample}
    where {source_present} and {condition}
)
select (select count(*) from drawn), array(select key from drawn order by random() limit {most})
"""


def draw_records(connection: Connection, pipeline: Pipeline) -> DrawnRecords:
    """Return keys of records of the source; all of a small one.

    No rows in some blocks prove nothing: more are drawn, up to all of them. Raises PipelineFault
    for a source that cannot be read.
    """
    blocks, has_blocks = connection.row(TABLES, (pipeline.source.quoted,))
    wanted = BLOCKS
    while True:
        share = min(1.0, wanted / max(blocks, 1)) if has_blocks else 1.0
        count, keys = _draw(connection, pipeline, share)
        if count >= FEWEST_RECORDS or share == 1.0:
            return DrawnRecords(keys=keys, records=count / share, margin=_margin(blocks, share))
        wanted *= MORE_BLOCKS


def _margin(blocks: int, share: float) -> float:
    """Return how well the number of rows is known: each block is drawn, or not, by itself."""
    return CONFIDENCE * math.sqrt((1 - share) / max(blocks * share, 1))


def _draw(connection: Connection, pipeline: Pipeline, share: float) -> tuple[int, list[str]]:
    where = pipeline.spec.where
    sample = sql.SQL("tablesample system ({})").format(sql.Literal(100 * share))
    query = sql.SQL(DRAW).format(
        **source_names(pipeline),
        table=pipeline.source.identifier,
        sample=sample if share < 1.0 else sql.SQL(""),
        condition=sql.SQL("({}\n)").format(condition(where)) if where else sql.SQL("true"),
        most=sql.Literal(MOST_RECORDS),
    )
    with _reading(connection, pipeline):
        count, keys = connection.row(query, {})
    return count, keys


@dataclass(frozen=True, kw_only=True)
class DrawnText:
    """The text of a record, with what goes around its chunks, and the bytes of copied columns."""

    key: str
    document: str
    context: Context | None
    copied_bytes: int


# As a claim reads: the first document, and those behind it that fit the limit of bytes.
READ = """
with found as (
    select
        listed.key,
        position,
        {document} as document,
        {context} as context,
        {copied_bytes} as copied_bytes
    from unnest(%(keys)s::text[]) with ordinality as listed (key, position)
    join {source} as source on {source_key} = {listed_key}
    where {key_is_among_keys}
),
measured as (
    select
        found.*,
        coalesce(
            sum(octet_length(document))
                over (order by position rows between unbounded preceding and 1 preceding),
            0
        ) as bytes_before
    from found
)
select key, coalesce(document, ''), context, copied_bytes
from measured
where bytes_before <= %(limit_bytes)s
order by position
"""


def read_texts(
    connection: Connection, pipeline: Pipeline, keys: Sequence[str], *, limit_bytes: int
) -> list[DrawnText]:
    """Return the texts of the first of `keys`: as many as fit the limit, and one at least.

    A record that has gone since it was drawn is not among them.
    """
    query = sql.SQL(READ).format(**source_names(pipeline), copied_bytes=_copied_bytes(pipeline))
    with _reading(connection, pipeline):
        values = {"keys": list(keys), "limit_bytes": limit_bytes}
        rows = connection.execute(query, values).fetchall()
    return [
        DrawnText(
            key=key,
            document=document,
            context=None if context is None else Context(*context),
            copied_bytes=copied_bytes,
        )
        for key, document, context, copied_bytes in rows
    ]


def _copied_bytes(pipeline: Pipeline) -> sql.Composable:
    return sql.SQL(" + ").join(
        [
            sql.SQL("0"),
            *(
                sql.SQL("coalesce(pg_column_size({}), 0)").format(column.of("source"))
                for column in pipeline.document.copied
            ),
        ]
    )


@contextmanager
def _reading(connection: Connection, pipeline: Pipeline) -> Iterator[None]:
    """Let what is read of the source change nothing, be it a view with functions."""
    with (
        trusting(connection, pipeline.spec),
        on_users_tables(connection, f"reading {pipeline.source}"),
        connection.transaction(),
    ):
        connection.execute("set local transaction_read_only = on")
        yield
