"""Assesses a record's stored chunks: do they stand for its text as it is now?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from tokenizers import Tokenizer

from pgqueue_embed.adopt.locate import Span, locate, without_marks
from pgqueue_embed.chunking import Chunk, ChunkedDocument, Chunker
from pgqueue_embed.errors import RecordFault
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.source.read import SourceRecord


class Assessment(Enum):
    """What is found about a record; the values are columns of pgembed.adoptions."""

    ADOPTED = "adopted"
    EMPTY = "empty"
    MISSING = "missing"
    WRONG_VECTORS = "wrong_vectors"
    TEXT_DIFFERS = "text_differs"
    CUT_OFF = "cut_off"
    GONE = "gone"


# Those that are right as they are; all others are queued.
RIGHT = (Assessment.ADOPTED, Assessment.EMPTY)


@dataclass(frozen=True, kw_only=True)
class StoredRow:
    """A row of the table as it was read.

    `version` names the row and its version. `usable` says that its vector has the right dimensions
    and a direction, `has_unit_norm` that its length is 1.
    """

    version: str
    text: str | None
    usable: bool
    has_unit_norm: bool


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A stored chunk that is right, with its place: the slice `chunk` of the document."""

    stored: StoredRow
    chunk: Chunk


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a record's stored chunks are worth, and the place of each where they are right."""

    worth: Assessment
    placed: tuple[Placed, ...] = ()


class Judge:
    """Compares stored chunks with those that a pipeline would make, or with the document itself.

    Chunks that were cut otherwise are right too, if each is a slice of the document that the model
    reads as it reads the stored text, and together they cover it.
    """

    def __init__(self, tokenizer: Tokenizer, pipeline: Pipeline, *, content_budget: int) -> None:
        """Take the most tokens of text that the model reads; longer texts were cut off by it."""
        self._keeps_cuts = pipeline.spec.chunking == "tokens"
        self._chunker = Chunker(
            tokenizer,
            max_tokens=pipeline.spec.chunk_tokens,
            overlap_tokens=pipeline.spec.overlap_tokens,
            whole=not self._keeps_cuts,
            control_tokens=pipeline.spec.control_tokens,
        )
        self._reader = Chunker(
            tokenizer,
            max_tokens=content_budget,
            overlap_tokens=0,
            whole=True,
            control_tokens=pipeline.spec.control_tokens,
        )

    def judge(
        self, records: Sequence[SourceRecord], stored: Mapping[str, Sequence[StoredRow]]
    ) -> dict[str, Judgement]:
        """Return a judgement on each of `records`, by key, from the chunks `stored` for them."""
        documents = [record.document or "" for record in records]
        return {
            record.key: self._judge(document, chunked, stored.get(record.key, ()))
            for record, document, chunked in zip(
                records, documents, self._cut(documents), strict=True
            )
        }

    def _cut(self, documents: Sequence[str]) -> list[ChunkedDocument | None]:
        """Cut documents as the pipeline does; None for one that it could not."""
        try:
            return list(self._chunker.chunk(documents))
        except RecordFault:
            if len(documents) == 1:
                return [None]
            return [chunked for each in documents for chunked in self._cut([each])]

    def _judge(
        self, document: str, chunked: ChunkedDocument | None, stored: Sequence[StoredRow]
    ) -> Judgement:
        if chunked is not None and not chunked.chunks:
            return Judgement(worth=Assessment.TEXT_DIFFERS if stored else Assessment.EMPTY)
        if not stored:
            return Judgement(worth=Assessment.MISSING)
        if not all(each.usable for each in stored):
            return Judgement(worth=Assessment.WRONG_VECTORS)
        if chunked is not None and (placed := _paired(stored, chunked.chunks)):
            return Judgement(worth=Assessment.ADOPTED, placed=placed)
        return self._judge_cuts(document, stored) if self._keeps_cuts else DIFFERS

    def _judge_cuts(self, document: str, stored: Sequence[StoredRow]) -> Judgement:
        texts = [each.text or "" for each in stored]
        places = locate(document, texts)
        if places is None:
            return DIFFERS
        try:
            slices = [self._read(document[each.start : each.end]) for each in places]
            read = [self._read(without_marks(texts[each.row])) for each in places]
        except RecordFault:
            return Judgement(worth=Assessment.CUT_OFF)
        if not all(map(_same_ids, slices, read)):
            return DIFFERS
        placed = tuple(
            Placed(stored=stored[place.row], chunk=_at(index, place, document, chunk))
            for index, (place, chunk) in enumerate(zip(places, slices, strict=True))
            if chunk is not None
        )
        return Judgement(worth=Assessment.ADOPTED, placed=placed)

    def _read(self, text: str) -> Chunk | None:
        """Return `text` as the model reads it; raises RecordFault if that is not all of it."""
        (chunked,) = self._reader.chunk([text])
        return chunked.chunks[0] if chunked.chunks else None


DIFFERS = Judgement(worth=Assessment.TEXT_DIFFERS)


def _paired(stored: Sequence[StoredRow], chunks: Sequence[Chunk]) -> tuple[Placed, ...]:
    """Return `chunks` with the stored ones of the same texts; nothing unless all have one."""
    in_table = sorted(stored, key=lambda each: each.text or "")
    in_document = sorted(chunks, key=lambda chunk: chunk.text)
    if [each.text for each in in_table] != [chunk.text for chunk in in_document]:
        return ()
    pairs = zip(in_table, in_document, strict=True)
    placed = [Placed(stored=each, chunk=chunk) for each, chunk in pairs]
    return tuple(sorted(placed, key=lambda each: each.chunk.index))


def _same_ids(left: Chunk | None, right: Chunk | None) -> bool:
    return (
        left is not None and right is not None and np.array_equal(left.token_ids, right.token_ids)
    )


def _at(index: int, place: Span, document: str, read: Chunk) -> Chunk:
    """Return the slice of the document at `place`, with the ids that were read in it."""
    return Chunk(
        index=index,
        start=place.start,
        end=place.end,
        text=document[place.start : place.end],
        token_ids=read.token_ids,
    )
