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
from pgqueue_embed.db.halves import by_halves
from pgqueue_embed.embedding import Embedded, NonFiniteVectors
from pgqueue_embed.errors import PgembedError, RecordFault
from pgqueue_embed.ledger.verdicts import Finding, Found
from pgqueue_embed.source.read import SourceRecord
from pgqueue_embed.untrusted.foreign_text import MOST_CHARACTERS, printable

OnProgress = Callable[[], None]

# Far more than a claim of ordinary records has: only a document of megabytes is parted.
PORTION_CHUNKS = 8_192


class Embedder(Protocol):
    """Gives chunks their vectors; see embedding.DeviceThread."""

    def embed(
        self, chunks: Sequence[Chunk], *, on_progress: OnProgress, anew: bool = False
    ) -> Embedded:
        """Return the vectors of `chunks`; calls `on_progress` in this thread as batches end.

        With `anew` each distinct text is computed, whatever vector of it is known.
        """
        ...


class Device(Embedder, Protocol):
    """The one thread that owns the model."""

    def verify(self) -> None:
        """Raise ModelError if the device no longer computes what it should."""
        ...


class DocumentChunker(Protocol):
    """See chunking.Chunker."""

    def chunk(
        self,
        documents: Sequence[str],
        contexts: Sequence[Context] | None = None,
        *,
        on_progress: OnProgress = lambda: None,
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
    embedder: Embedder,
    verify: Callable[[], None],
    on_progress: OnProgress,
) -> EmbeddingResult:
    """Chunk and embed `records` (each with whether to embed it again); every one gets a finding.

    Raises PgembedError for what is not a record's fault: a lost lease, or what `verify` raises of a
    device that fails its self-test, which is asked once a record fails. Then nothing is charged.
    """
    result = EmbeddingResult()
    started = time.monotonic()
    prepared = _chunk(result, records, chunker, on_progress)
    result.chunk_seconds = time.monotonic() - started
    on_progress()
    for each in prepared:
        result.tokens += each.chunked.tokens
        result.unknown_tokens += each.chunked.unknown_tokens
        if not each.chunked.chunks:
            result.findings.append(_finding(each.record, each.embed_again, Found.EMPTY))
    started = time.monotonic()
    with_chunks = [each for each in prepared if each.chunked.chunks]
    _embed(result, with_chunks, embedder, verify, on_progress)
    result.embed_seconds = time.monotonic() - started
    return result


def _chunk(
    result: EmbeddingResult,
    records: Sequence[tuple[SourceRecord, bool]],
    chunker: DocumentChunker,
    on_progress: OnProgress,
) -> list[_Prepared]:
    """Return `records` with their chunks, but for those that cannot be chunked."""
    prepared: list[_Prepared] = []
    hopeless = False

    def chunk(some: Sequence[tuple[SourceRecord, bool]]) -> None:
        documents = [record.document or "" for record, _ in some]
        chunked = chunker.chunk(documents, _contexts(some), on_progress=on_progress)
        for (record, again), document in zip(some, chunked, strict=True):
            prepared.append(_Prepared(record, again, document))

    def reason(error: Exception) -> str:
        nonlocal hopeless
        # What a record has too much of, stays.
        hopeless = isinstance(error, RecordFault)
        return _reason(error)

    def refuse(item: tuple[SourceRecord, bool], why: str) -> None:
        found = _finding(*item, Found.FAILED, error=why)
        result.findings.append(replace(found, hopeless=hopeless))

    by_halves(records, chunk, refuse, reason=reason)
    return prepared


def _contexts(records: Sequence[tuple[SourceRecord, bool]]) -> list[Context] | None:
    """Return the context of each record's chunks, None where the pipeline has no chunk template."""
    contexts = [record.context for record, _ in records if record.context is not None]
    return contexts if len(contexts) == len(records) else None


def _embed(
    result: EmbeddingResult,
    prepared: Sequence[_Prepared],
    embedder: Embedder,
    verify: Callable[[], None],
    on_progress: OnProgress,
) -> None:
    """Add the vectors of `prepared` to `result`, and the records that have none."""

    def embed(some: Sequence[_Prepared]) -> None:
        inputs = [chunk for each in some for chunk in each.chunked.inputs]
        # Who asks for all may want to get rid of what a device has computed wrong.
        anew = any(each.embed_again for each in some)
        vectors = _embed_chunks(result, embedder, inputs, on_progress, anew=anew)
        _accept(result, some)
        result.vectors.append(vectors)

    def refuse(each: _Prepared, why: str) -> None:
        # A device that fails its self-test is at fault itself, and raises here.
        verify()
        found = _finding(each.record, each.embed_again, Found.FAILED, error=why)
        result.findings.append(found)

    by_halves(prepared, embed, refuse, reason=_reason)


def _embed_chunks(
    result: EmbeddingResult,
    embedder: Embedder,
    chunks: Sequence[Chunk],
    on_progress: OnProgress,
    *,
    anew: bool,
) -> NDArray[np.float32]:
    """Return vectors, shape (chunks, dimensions), and add up what they took.

    A long document goes to the device in portions: at once, its vectors would exist three times.
    """

    def embed(portion: Sequence[Chunk]) -> NDArray[np.float32]:
        try:
            embedded = embedder.embed(portion, on_progress=on_progress, anew=anew)
        except NonFiniteVectors as fault:
            result.device_seconds += fault.device_seconds
            # The good ones come from the cache next time, unless all are computed anew.
            result.fp32_chunks += 0 if anew else fault.fp32_chunks
            raise
        result.cache_hits += embedded.cache_hits
        result.reused += embedded.reused
        result.device_seconds += embedded.device_seconds
        result.fp32_chunks += embedded.fp32_chunks
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


def _reason(error: Exception) -> str:
    """Return what an error says of a record; raises it if it may not be a record's."""
    if isinstance(error, psycopg.Error):
        raise error
    if isinstance(error, PgembedError) and not isinstance(error, RecordFault):
        raise error
    return describe_error(error)


def _accept(
    result: EmbeddingResult,
    prepared: Sequence[_Prepared],
) -> None:
    first = len(result.chunks)
    for each in prepared:
        count = len(each.chunked.chunks)
        found = _finding(
            each.record, each.embed_again, Found.EMBEDDED, first_chunk=first, chunks=count
        )
        result.findings.append(found)
        result.chunks += each.chunked.chunks
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
