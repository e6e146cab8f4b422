"""Inputs of the model for stored chunks: their own text, or that of their record, cut again."""

from __future__ import annotations

from collections.abc import Sequence

from pgqueue_embed.chunking import Chunk, ChunkedDocument, Chunker
from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.steps import run
from pgqueue_embed.embedding import EmbeddingModel
from pgqueue_embed.errors import PipelineFault, RecordFault, RoleFault
from pgqueue_embed.pipeline.model import make_chunker
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.source.read import SourceRecord, read_records
from pgqueue_embed.vector_search.reading import why_unreadable
from pgqueue_embed.verification.sample import DrawnChunk

# Of a few hundred records no more is held at once, and the rest read in another go.
LIMIT_BYTES = 16 << 20


def inputs_of(
    connection: Connection, pipeline: Pipeline, model: EmbeddingModel, drawn: Sequence[DrawnChunk]
) -> list[Chunk | None]:
    """Return what the model read for each of `drawn`; None where that is not to be told any more.

    The text of a chunk is in the target, as a rule. What a chunk template puts around it is not,
    a column of the source has no chunks, and a table may store no texts: these records are read,
    and cut as they were, if their text is still the one that was embedded.
    """
    spec = pipeline.spec
    if spec.text and spec.into_column is None and spec.chunk_template is None:
        return [None if each.text is None else model.whole_chunk(each.text) for each in drawn]
    chunker = make_chunker(model, pipeline)
    cut: dict[str, tuple[bytes, ChunkedDocument]] = {}
    waiting = list(dict.fromkeys(each.key for each in drawn))
    while waiting:
        records = _read(connection, pipeline, waiting)
        read = [each for each in records if each.document is not None]
        for record in read:
            found = _cut(chunker, record)
            if found is not None:
                cut[record.key] = (record.document_hash, found)
        done = {record.key for record in read}
        later = {record.key for record in records} - done
        waiting = [key for key in waiting if key in later] if done else []
    return [_input(each, cut) for each in drawn]


def _read(connection: Connection, pipeline: Pipeline, keys: Sequence[str]) -> list[SourceRecord]:
    again = [True] * len(keys)
    try:
        return read_records(connection, pipeline, keys, again, limit_bytes=LIMIT_BYTES)
    except RoleFault:
        raise
    except PipelineFault as error:
        raise PipelineFault(run(connection, why_unreadable(pipeline, error))) from None


def _cut(chunker: Chunker, record: SourceRecord) -> ChunkedDocument | None:
    contexts = None if record.context is None else [record.context]
    try:
        (chunked,) = chunker.chunk([record.document or ""], contexts)
    except RecordFault:
        return None
    return chunked


def _input(drawn: DrawnChunk, cut: dict[str, tuple[bytes, ChunkedDocument]]) -> Chunk | None:
    if drawn.key not in cut:
        return None
    document_hash, chunked = cut[drawn.key]
    if document_hash != drawn.document_hash or drawn.chunk_index >= len(chunked.inputs):
        return None
    stored_is_same = drawn.text in (None, chunked.chunks[drawn.chunk_index].text)
    return chunked.inputs[drawn.chunk_index] if stored_is_same else None
