"""The estimate of a pipeline: chunks, tokens, bytes and hours, from a sample of its source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pgqueue_embed.chunking import Chunker
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.estimation.drawn_records import DrawnRecords, draw_records
from pgqueue_embed.estimation.rate import ChunkRate
from pgqueue_embed.estimation.storage import (
    Layout,
    index_bytes,
    ledger_bytes,
    logged_bytes,
    table_bytes,
)
from pgqueue_embed.estimation.text_sample import ChunkBytes, TextSample, take_sample
from pgqueue_embed.pipeline.partitioning import parse_partitioning
from pgqueue_embed.pipeline.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Bytes in the database, with vectors and their index of one kind.

    For vectors in a column of the source, whose rows are written anew, `table`, `key_indexes` and
    `wal` are None. Without an index of that kind, for too many dimensions, what belongs to it is
    None. `wal` is what is logged while all is embedded and indexed.
    """

    vectors: str
    index: str
    table: int | None
    key_indexes: int | None
    vector_index: int | None
    index_memory: int | None
    ledger: int
    wal: int | None

    @property
    def in_all(self) -> int:
        """What lies on the disk in the end."""
        return (self.table or 0) + (self.key_indexes or 0) + (self.vector_index or 0) + self.ledger


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a pipeline will take, if the rest of its source is like the sample.

    `margin` is the half width of the 95 % interval of `chunks` and `tokens`, as a share; 0 where
    all was looked at. `tokens` are those that are stored with the chunks, overlaps included.
    """

    pipeline: Pipeline
    records: int
    sampled: int
    margin: float
    chunks: int
    tokens: int
    empty_records: int
    refused_records: int
    refusal: str | None
    rate: ChunkRate | None
    storage: tuple[Storage, ...]

    @property
    def hours(self) -> float | None:
        """How long all of it takes at the rate, without pauses; None where none is known."""
        if not self.chunks:
            return 0.0
        return self.chunks / self.rate.chunks_per_second / 3600 if self.rate else None

    def as_json(self) -> dict[str, Any]:
        """Return all of it as values that JSON can carry; sizes in bytes."""
        spec = self.pipeline.spec
        return {
            "pipeline": self.pipeline.name,
            "source": str(self.pipeline.source),
            "model": self.pipeline.model,
            "dimensions": self.pipeline.dimensions,
            "chunk_size": spec.chunk_tokens,
            "overlap_tokens": spec.overlap_tokens,
            "records": self.records,
            "sampled_records": self.sampled,
            "margin": round(self.margin, 4),
            "empty_records": self.empty_records,
            "refused_records": self.refused_records,
            "refusal": self.refusal,
            "chunks": self.chunks,
            "tokens": self.tokens,
            "chunks_per_second": self.rate and round(self.rate.chunks_per_second, 2),
            "rate_of": self.rate and self.rate.of,
            "hours": self.hours,
            "storage": [{**asdict(each), "in_all": each.in_all} for each in self.storage],
        }


def estimate(
    connection: Connection,
    pipeline: Pipeline,
    chunker: Chunker,
    rate_of: Callable[[TextSample], ChunkRate | None],
    *,
    on_progress: Callable[[str], None] = lambda doing: None,
) -> Estimate:
    """Return what `pipeline`, which may be yet to be made, will take; changes nothing.

    Raises UsageError for a source without records, PipelineFault for one that cannot be read.
    """
    on_progress(f"drawing records of {pipeline.source}")
    drawn = draw_records(connection, pipeline)
    if not drawn.keys:
        which = " that match --where" if pipeline.spec.where else ""
        raise UsageError(f"{pipeline.source} has no rows{which}: there is nothing to estimate from")
    sample = take_sample(
        connection,
        pipeline,
        drawn,
        chunker,
        on_progress=lambda records: on_progress(f"cutting texts: {records:,} records"),
    )
    if not sample.records:
        raise UsageError(f"the records of {pipeline.source} went while they were read; try again")
    on_progress("measuring how fast this machine embeds")
    return _scaled(pipeline, drawn, sample, rate_of(sample))


def _scaled(
    pipeline: Pipeline, drawn: DrawnRecords, sample: TextSample, rate: ChunkRate | None
) -> Estimate:
    times = drawn.records / sample.records
    chunks = round(len(sample.chunks) * times)
    records = round(drawn.records)
    return Estimate(
        pipeline=pipeline,
        records=records,
        sampled=sample.records,
        margin=(drawn.margin**2 + sample.margin(drawn.records) ** 2) ** 0.5,
        chunks=chunks,
        tokens=round(sample.tokens * times),
        empty_records=round(sample.empty * times),
        refused_records=round(sum(sample.refused.values()) * times),
        refusal=max(sample.refused, key=lambda why: sample.refused[why], default=None),
        rate=rate,
        storage=tuple(
            _storage(pipeline, sample, records, chunks, vectors, index)
            for vectors, index in _kinds(pipeline)
        ),
    )


def _kinds(pipeline: Pipeline) -> list[tuple[str, str]]:
    """Return types of vectors and of their indexes to compare."""
    chosen = pipeline.spec.vector_type
    return [("vector", "none"), ("halfvec", "none"), (chosen, "binary")]


def _storage(
    pipeline: Pipeline, sample: TextSample, records: int, chunks: int, vectors: str, index: str
) -> Storage:
    partition_by = pipeline.spec.partition_by
    layout = Layout(
        key=pipeline.key.columns,
        vector_type=vectors,
        dimensions=pipeline.dimensions,
        is_partitioned=partition_by is not None,
        hashed=parse_partitioning(partition_by).hashed if partition_by else 0,
        text=pipeline.spec.text,
        ids=pipeline.spec.ids,
    )
    in_column = pipeline.spec.into_column is not None
    table = table_bytes(layout, sample.chunks, chunks)
    logged = table.wal + logged_bytes(records)
    of_vectors = index_bytes(layout, chunks, quantize=index)
    return Storage(
        vectors=vectors,
        index=index,
        table=None if in_column else table.table,
        key_indexes=None if in_column else table.key_indexes,
        vector_index=None if of_vectors is None else of_vectors.index,
        index_memory=None if of_vectors is None else of_vectors.memory,
        ledger=ledger_bytes(records, _key_bytes(sample.chunks)),
        wal=None if in_column else logged + (of_vectors.index if of_vectors else 0),
    )


def _key_bytes(chunks: list[ChunkBytes]) -> int:
    return round(sum(each.key_bytes for each in chunks) / len(chunks)) if chunks else 0
