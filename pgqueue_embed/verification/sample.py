"""Draws stored chunks at random, from a table of any size in the time of some thousand blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg import sql

from pgqueue_embed.db.faults import on_users_tables
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.source.trust import trusting

# So many blocks for each chunk wanted, that two of the sample are rarely of one block: neighbours
# were written together, and are right or wrong together.
BLOCKS_A_CHUNK = 10

# Blocks may be empty, or of rows without a vector.
MORE_BLOCKS = 8


@dataclass(frozen=True, kw_only=True)
class DrawnChunk:
    """A stored chunk, and what the ledger knows of its record.

    `text` is None where the target holds none. `document_hash` is that of the text which was
    embedded; None if the record has another state by now.
    """

    key: str
    chunk_index: int
    text: str | None
    vector: Sequence[float]
    document_hash: bytes | None
    embedded_at: datetime | None
    worker_id: int | None
    host: str | None
    pid: int | None
    precision: str | None

    @property
    def worker(self) -> str | None:
        """The worker process that wrote it: host and process, or its number once it is forgotten.

        None where none is known.
        """
        if self.host is not None:
            return f"{self.host.partition('.')[0]}:{self.pid}"
        return None if self.worker_id is None else f"worker {self.worker_id}"


# Of a drawn block all rows count, so that each has the same chance, however full its block is.
DRAW = """
with drawn as materialized (
    select
        {key_text} as key,
        {chunk_index} as chunk_index,
        {text} as text,
        target.{embedding} as vector
    from {table} as target tablesample system ({percent})
    where target.{embedding} is not null
    order by random()
    limit {chunks}
)
select
    drawn.key,
    drawn.chunk_index,
    drawn.text,
    drawn.vector::real[],
    ledger.document_hash,
    ledger.embedded_at,
    ledger.worker_id,
    workers.host,
    workers.pid,
    workers.precision
from drawn
left join lateral (
    select document_hash, embedded_at, worker_id
    from pgembed.records
    where pipeline_id = {pipeline_id}
        and records.key = pgembed.ledger_key(drawn.key)
        and state = 'embedded'
        and generation = {generation}
    limit 1
) as ledger on true
left join pgembed.workers on workers.id = ledger.worker_id
"""

BLOCKS = """
select coalesce(sum(pg_relation_size(relid)), 0)::bigint
    / current_setting('block_size')::integer
from pg_partition_tree(to_regclass(%s))
"""


def draw_chunks(connection: Connection, pipeline: Pipeline, chunks: int) -> list[DrawnChunk]:
    """Return up to `chunks` stored chunks, each of which had the same chance; all of a small table.

    Reads some ten blocks for each, drawn with TABLESAMPLE, however large the table is.
    """
    blocks = connection.value(BLOCKS, (pipeline.target.quoted,))
    wanted = BLOCKS_A_CHUNK * chunks
    while True:
        percent = min(100.0, 100.0 * wanted / max(blocks, 1))
        drawn = _draw(connection, pipeline, chunks, percent)
        if len(drawn) == chunks or percent == 100.0:
            return drawn
        wanted *= MORE_BLOCKS


def _draw(
    connection: Connection, pipeline: Pipeline, chunks: int, percent: float
) -> list[DrawnChunk]:
    query = sql.SQL(DRAW).format(
        **_columns(pipeline),
        embedding=sql.Identifier(pipeline.spec.columns.embedding),
        table=pipeline.target.identifier,
        percent=sql.Literal(percent),
        chunks=sql.Literal(chunks),
        pipeline_id=sql.Literal(pipeline.id),
        generation=sql.Literal(pipeline.generation),
    )
    doing = f"reading the vectors of {pipeline.target}"
    with (
        trusting(connection, pipeline.spec),
        on_users_tables(connection, doing),
        connection.transaction(),
    ):
        rows = connection.execute(query).fetchall()
    return [
        DrawnChunk(
            key=key,
            chunk_index=chunk_index,
            text=text,
            vector=vector,
            document_hash=document_hash,
            embedded_at=embedded_at,
            worker_id=worker_id,
            host=host,
            pid=pid,
            precision=precision,
        )
        for (
            key,
            chunk_index,
            text,
            vector,
            document_hash,
            embedded_at,
            worker_id,
            host,
            pid,
            precision,
        ) in rows
    ]


def _columns(pipeline: Pipeline) -> dict[str, sql.Composable]:
    """Return how the key, the place and the text of a stored chunk are read."""
    if pipeline.spec.into_column is not None:
        key = pipeline.key.text("target")
        return {"key_text": key, "chunk_index": sql.SQL("0"), "text": sql.SQL("null::text")}
    columns = pipeline.spec.columns
    stored = sql.Identifier("target", columns.text_chunk)
    return {
        "key_text": pipeline.key.text("target", columns.fulltext_id),
        "chunk_index": sql.Identifier("target", columns.chunk_index),
        "text": stored if pipeline.spec.text else sql.SQL("null::text"),
    }
