"""The chunks of a sample's texts, cut by the chunker of the workers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pgqueue_embed.chunking import Chunk, Chunker
from pgqueue_embed.db.halves import by_halves
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import RecordFault
from pgqueue_embed.estimation.drawn_records import CONFIDENCE, DrawnRecords, DrawnText, read_texts
from pgqueue_embed.pipeline.pipeline import Pipeline

# Texts are read until the chunks of a record are known so well, or for so long.
MARGIN = 0.02
SECONDS = 20.0
FEWEST_RECORDS = 1_000

PORTION_RECORDS = 250
PORTION_BYTES = 8 << 20

# Chunks that are kept, to measure how fast they are embedded.
KEPT_CHUNKS = 2_048


@dataclass(frozen=True, kw_only=True)
class ChunkBytes:
    """What a chunk takes in the target table: bytes of key, text, and copied columns."""

    key_bytes: int
    text_bytes: int
    copied_bytes: int


@dataclass(kw_only=True)
class TextSample:
    """The sample: for each record the numbers of its chunks and tokens, and all chunks in order.

    Tokens are those of the chunks, overlaps included. `refused` counts records that no worker
    can cut, by the reason. `inputs` are some of the chunks, as the model reads them.
    """

    chunk_counts: list[int] = field(default_factory=list)
    chunks: list[ChunkBytes] = field(default_factory=list)
    token_counts: list[int] = field(default_factory=list)
    empty: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    inputs: list[Chunk] = field(default_factory=list)

    @property
    def records(self) -> int:
        """How many records were looked at."""
        return len(self.chunk_counts)

    @property
    def tokens(self) -> int:
        """The tokens of all chunks."""
        return sum(self.token_counts)

    def margin(self, records: float) -> float:
        """Return the half width of the 95 % interval of chunks and tokens a record, as a share.

        The wider one of the two, of a source with so many `records`: 0 once all were looked at.
        """
        unseen = max(0.0, 1 - self.records / records)
        spreads = (_spread(self.chunk_counts), _spread(self.token_counts))
        return CONFIDENCE * max(spreads) * math.sqrt(unseen)

    def add(self, record: DrawnText, chunks: Sequence[Chunk], inputs: Sequence[Chunk]) -> None:
        """Take in a record that can be cut."""
        self.chunk_counts.append(len(chunks))
        self.token_counts.append(sum(len(chunk.token_ids) for chunk in chunks))
        self.empty += not chunks
        key_bytes = len(record.key.encode())
        for chunk in chunks:
            text_bytes = len(chunk.text.encode())
            self.chunks.append(
                ChunkBytes(
                    key_bytes=key_bytes, text_bytes=text_bytes, copied_bytes=record.copied_bytes
                )
            )
        if len(self.inputs) < KEPT_CHUNKS:
            self.inputs += inputs

    def refuse(self, why: str) -> None:
        """Take in a record that cannot be cut."""
        self.chunk_counts.append(0)
        self.token_counts.append(0)
        self.refused[why] = self.refused.get(why, 0) + 1


def _spread(counts: Sequence[int]) -> float:
    """Return the standard deviation of the mean of `counts`, as a share of it."""
    numbers = np.array(counts, np.float64)
    if not numbers.any():
        return 0.0
    return float(numbers.std() / math.sqrt(len(numbers)) / numbers.mean())


def take_sample(
    connection: Connection,
    pipeline: Pipeline,
    drawn: DrawnRecords,
    chunker: Chunker,
    *,
    on_progress: Callable[[int], None] = lambda records: None,
) -> TextSample:
    """Cut texts of drawn records, in random order, until enough is known or time is up."""
    sample = TextSample()
    started = time.monotonic()
    keys = list(drawn.keys)
    while keys:
        portion = keys[:PORTION_RECORDS]
        texts = read_texts(connection, pipeline, portion, limit_bytes=PORTION_BYTES)
        read = {each.key for each in texts}
        # What has gone meanwhile is before the last one that was read.
        last = max(
            (place for place, key in enumerate(portion) if key in read), default=len(portion) - 1
        )
        keys = keys[last + 1 :]
        _cut(sample, texts, chunker)
        on_progress(sample.records)
        if sample.records >= FEWEST_RECORDS and sample.margin(drawn.records) <= MARGIN:
            break
        if time.monotonic() - started > SECONDS:
            break
    return sample


def _cut(sample: TextSample, texts: Sequence[DrawnText], chunker: Chunker) -> None:
    def cut(some: Sequence[DrawnText]) -> None:
        contexts = [each.context for each in some if each.context is not None]
        documents = [each.document for each in some]
        chunked = chunker.chunk(documents, contexts if len(contexts) == len(some) else None)
        for record, each in zip(some, chunked, strict=True):
            sample.add(record, each.chunks, each.inputs)

    by_halves(texts, cut, lambda _record, why: sample.refuse(why), reason=_reason)


def _reason(error: Exception) -> str:
    if not isinstance(error, RecordFault):
        raise error
    return str(error)
