"""From documents to vectors: chunk them, embed the chunks, narrow a failure down to its record."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import psycopg
from numpy.typing import NDArray

from pgqueue_embed.chunking import Chunk, ChunkedDocument, Context
from pgqueue_embed.errors import PgembedError, RecordFault
from pgqueue_embed.ledger.verdicts import Finding, Found
from pgqueue_embed.source.read import SourceRecord
from pgqueue_embed.untrusted.foreign_text import MOST_CHARACTERS, printable

Progress = Callable[[], None]

# Far more than a claim of ordinary records has: only a document of megabytes is parted.
PORTION_CHUNKS = 8_192


class EmbeddedChunks(Protocol):
    """What a device gives back: float32 vectors of shape (chunks, dimensions), unit norm."""

    @property
    def vectors(self) -> NDArray[np.float32]: ...
    @property
    def cache_hits(self) -> int: ...
    @property
    def device_seconds(self) -> float: ...
    @property
    def fp32_chunks(self) -> int: ...


class Device(Protocol):
    """The one thread that owns the model; see embedding.DeviceThread."""

    def embed(
        self, chunks: Sequence[Chunk], *, on_progress: Progress, anew: bool = False
    ) -> EmbeddedChunks:
        """Return the vectors of `chunks`; calls `on_progress` in this thread as batches end.

        With `anew` each distinct text is computed, whatever vector of it is known.
        """
        ...

    def verify(self) -> None:
        """Raise ModelError if the device no longer computes what it should."""
        ...

    def stalled_seconds(self) -> float:
        """Return for how long callers have waited without any progress of the device."""
        ...


class DocumentChunker(Protocol):
    """See chunking.Chunker."""

    def chunk(
        self,
        documents: Sequence[str],
        contexts: Sequence[Context] | None = None,
        *,
        on_progress: Progress = lambda: None,
    ) -> list[ChunkedDocument]:
        """Return the chunks of each document; calls `on_progress` as it gets on."""
        ...


@dataclass(kw_only=True)
class EmbeddingResult:
    """The work of one claim as it comes together: findings, chunks, vectors, and what it took."""

    findings: list[Finding] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    vectors: list[NDArray[np.float32]] = field(default_factory=list)
    tokens: int = 0
    unknown_tokens: int = 0
    cache_hits: int = 0
    reused: int = 0
    chunk_seconds: float = 0.0
    embed_seconds: float = 0.0
    device_seconds: float = 0.0
    fp32_chunks: int = 0


@dataclass(frozen=True)
class _Prepared:
    """One record with text, chunked."""

    record: SourceRecord
    embed_again: bool
    chunked: ChunkedDocument


def embed_records(
    records: Sequence[tuple[SourceRecord, bool]],
    *,
    chunker: DocumentChunker,
    device: Device,
    on_progress: Progress,
) -> EmbeddingResult:
    """Chunk and embed `records` (each with whether to embed it again); every one gets a finding.

    Raises PgembedError for what is not a record's fault: a device that fails its self-test, a
    lost lease. Then nothing is charged.
    """
    embedding = EmbeddingResult()
    started = time.monotonic()
    prepared = _chunk(embedding, records, chunker, on_progress)
    embedding.chunk_seconds = time.monotonic() - started
    on_progress()
    for each in prepared:
        embedding.tokens += each.chunked.tokens
        embedding.unknown_tokens += each.chunked.unknown_tokens
        if not each.chunked.chunks:
            embedding.findings.append(_finding(each.record, each.embed_again, Found.EMPTY))
    started = time.monotonic()
    _embed(embedding, [each for each in prepared if each.chunked.chunks], device, on_progress)
    embedding.embed_seconds = time.monotonic() - started
    return embedding


def _chunk(
    embedding: EmbeddingResult,
    records: Sequence[tuple[SourceRecord, bool]],
    chunker: DocumentChunker,
    on_progress: Progress,
) -> list[_Prepared]:
    """Chunk `records` as one, or after a failure by halves down to the record that fails."""
    try:
        documents = [record.document or "" for record, _ in records]
        contexts = _contexts(records)
        chunked = chunker.chunk(documents, contexts, on_progress=on_progress)
    except Exception as error:
        if not _may_be_the_records(error):
            raise
        if len(records) == 1:
            embedding.findings.append(_unfit(*records[0], error))
            return []
    else:
        return [
            _Prepared(record, again, document)
            for (record, again), document in zip(records, chunked, strict=True)
        ]
    middle = len(records) // 2
    halves = (records[:middle], records[middle:])
    return [each for half in halves for each in _chunk(embedding, half, chunker, on_progress)]


def _contexts(records: Sequence[tuple[SourceRecord, bool]]) -> list[Context] | None:
    """Return the context of each record's chunks, None where the pipeline has no chunk template."""
    contexts = [record.context for record, _ in records if record.context is not None]
    return contexts if len(contexts) == len(records) else None


def _unfit(record: SourceRecord, embed_again: bool, error: Exception) -> Finding:
    """Return the finding on a record that cannot be chunked; what it has too much of, stays."""
    finding = _finding(record, embed_again, Found.FAILED, error=describe_error(error))
    return replace(finding, hopeless=isinstance(error, RecordFault))


def _embed(
    embedding: EmbeddingResult, prepared: Sequence[_Prepared], device: Device, on_progress: Progress
) -> None:
    """Embed `prepared` as one, or after a failure by halves down to the record that fails."""
    if not prepared:
        return
    inputs = [chunk for each in prepared for chunk in each.chunked.inputs]
    try:
        # Who asks for all may want to get rid of what a device has computed wrong.
        anew = any(each.embed_again for each in prepared)
        vectors = _embed_chunks(embedding, device, inputs, on_progress, anew=anew)
    except Exception as error:
        if not _may_be_the_records(error):
            raise
        if len(prepared) == 1:
            # A device that fails its self-test is at fault itself, and raises here.
            device.verify()
            record, again = prepared[0].record, prepared[0].embed_again
            embedding.findings.append(
                _finding(record, again, Found.FAILED, error=describe_error(error))
            )
            return
    else:
        _accept(embedding, prepared)
        embedding.vectors.append(vectors)
        return
    middle = len(prepared) // 2
    _embed(embedding, prepared[:middle], device, on_progress)
    _embed(embedding, prepared[middle:], device, on_progress)


def _embed_chunks(
    embedding: EmbeddingResult,
    device: Device,
    chunks: Sequence[Chunk],
    on_progress: Progress,
    *,
    anew: bool,
) -> NDArray[np.float32]:
    """Return vectors, shape (chunks, dimensions), and add up what they took.

    A long document goes to the device in portions: at once, its vectors would exist three times.
    """

    def embed(portion: Sequence[Chunk]) -> NDArray[np.float32]:
        embedded = device.embed(portion, on_progress=on_progress, anew=anew)
        embedding.cache_hits += embedded.cache_hits
        embedding.device_seconds += embedded.device_seconds
        embedding.fp32_chunks += embedded.fp32_chunks
        return embedded.vectors

    first = embed(chunks[:PORTION_CHUNKS])
    if len(chunks) <= PORTION_CHUNKS:
        return first
    vectors = np.empty((len(chunks), first.shape[1]), np.float32)
    vectors[:PORTION_CHUNKS] = first
    for start in range(PORTION_CHUNKS, len(chunks), PORTION_CHUNKS):
        portion = slice(start, start + PORTION_CHUNKS)
        vectors[portion] = embed(chunks[portion])
    return vectors


def _may_be_the_records(error: Exception) -> bool:
    if isinstance(error, PgembedError):
        return isinstance(error, RecordFault)
    return not isinstance(error, psycopg.Error)


def _accept(
    embedding: EmbeddingResult,
    prepared: Sequence[_Prepared],
) -> None:
    first = len(embedding.chunks)
    for each in prepared:
        count = len(each.chunked.chunks)
        found = _finding(
            each.record, each.embed_again, Found.EMBEDDED, first_chunk=first, chunks=count
        )
        embedding.findings.append(found)
        embedding.chunks += each.chunked.chunks
        first += count


def _finding(
    record: SourceRecord,
    embed_again: bool,
    found: Found,
    *,
    first_chunk: int = 0,
    chunks: int = 0,
    error: str | None = None,
) -> Finding:
    return Finding(
        key=record.key,
        found=found,
        embed_again=embed_again,
        document_hash=record.document_hash,
        first_chunk=first_chunk,
        chunks=chunks,
        error=error,
    )


def describe_error(error: BaseException) -> str:
    """Return an error as one line of the ledger: its kind and the beginning of its text."""
    text = printable(str(error), MOST_CHARACTERS)
    return f"{type(error).__name__}: {text}".rstrip(": ")
