"""Slices of the source with what is stored for them, read and judged; nothing stays locked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psycopg import sql

from pgqueue_embed.adopt.judge import Judge, Judgement, StoredRow
from pgqueue_embed.adopt.stored_chunks import read_stored
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.source.read import SourceRecord, read_records, source_names
from pgqueue_embed.source.trust import trusting

# A slice is judged in memory, and written while its records are locked: both are to be short.
SLICE_RECORDS = 500
SLICE_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class JudgedSlice:
    """Records of the source with a judgement on each, by key, and what is stored for them.

    `last_key` is the last key that was looked at, None at the end of the source.
    """

    records: Sequence[SourceRecord]
    stored: Mapping[str, Sequence[StoredRow]]
    judgements: Mapping[str, Judgement]
    last_key: str | None


KEYS = """
select {source_key_text}
from {source} as source
where {source_present} {after}
order by {source_order}
limit %(slice_records)s
"""


def next_slice(
    connection: Connection,
    pipeline: Pipeline,
    judge: Judge,
    *,
    last_key: str | None,
) -> JudgedSlice:
    """Read and judge the records behind `last_key`, or the first ones."""
    key = pipeline.key
    after = sql.SQL("and {} > {}").format(key.of("source"), key.value(sql.SQL("%(last_key)s")))
    query = sql.SQL(KEYS).format(
        **source_names(pipeline),
        source_order=key.listed("source"),
        after=sql.SQL("") if last_key is None else after,
    )
    values = {"last_key": last_key, "slice_records": SLICE_RECORDS}
    with trusting(connection, pipeline.spec), connection.transaction():
        keys = [each for (each,) in connection.execute(query, values)]
    return judge_keys(connection, pipeline, judge, keys)


def judge_keys(
    connection: Connection, pipeline: Pipeline, judge: Judge, keys: Sequence[str]
) -> JudgedSlice:
    """Read and judge those of the records `keys`, in that order, that fit the bytes of a slice."""
    with trusting(connection, pipeline.spec), connection.transaction():
        read = read_records(connection, pipeline, keys, [True] * len(keys), limit_bytes=SLICE_BYTES)
        records = [record for record in read if not record.beyond_limit]
        whole = len(records) == len(read)
        stored = read_stored(connection, pipeline, [each.key for each in records])
    return JudgedSlice(
        records=records,
        stored=stored,
        judgements=judge.judge(records, stored),
        last_key=(keys[-1] if keys else None) if whole else records[-1].key,
    )
