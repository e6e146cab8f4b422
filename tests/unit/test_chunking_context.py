"""Chunks with a context around them, and documents that stay whole."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pgqueue_embed.chunking import ChunkedDocument, Chunker, Context
from pgqueue_embed.chunking.encoding import private_copy
from pgqueue_embed.errors import RecordFault
from tests.support.corpus import texts
from tests.support.fakes import fake_chunker, tokenizer

HEADING = Context(before="Pump report\n", after=" (end)")


@cache
def plain_tokenizer() -> Tokenizer:
    return private_copy(tokenizer())


def token_count(text: str) -> int:
    return len(plain_tokenizer().encode(text, add_special_tokens=False).ids)


def assert_framed(
    document: str, context: Context, chunked: ChunkedDocument, *, max_tokens: int
) -> None:
    assert len(chunked.inputs) == len(chunked.chunks)
    for chunk, read in zip(chunked.chunks, chunked.inputs, strict=True):
        assert document[chunk.start : chunk.end] == chunk.text
        assert read.text == context.before + chunk.text + context.after
        assert len(read.token_ids) == token_count(read.text) <= max_tokens
        assert len(chunk.token_ids) == token_count(chunk.text)


def test_context_is_around_every_chunk_and_in_none() -> None:
    document = " ".join(texts(4, chunks=2))
    (bare,) = fake_chunker(24).chunk([document])
    (chunked,) = fake_chunker(24).chunk([document], [HEADING])
    assert_framed(document, HEADING, chunked, max_tokens=24)
    assert len(chunked.chunks) > len(bare.chunks) > 1
    assert chunked.tokens == bare.tokens
    assert bare.inputs == bare.chunks


def test_each_document_has_a_context_of_its_own() -> None:
    documents = texts(5, chunks=3)
    contexts = [Context(before=f"Report {n}: ", after="") for n in range(5)]
    for document, context, chunked in zip(
        documents, contexts, fake_chunker(24).chunk(documents, contexts), strict=True
    ):
        assert_framed(document, context, chunked, max_tokens=24)


def test_empty_context_changes_nothing() -> None:
    documents = texts(5, chunks=3)
    empty = [Context(before="", after="")] * 5
    assert fake_chunker().chunk(documents, empty) == fake_chunker().chunk(documents)


def test_context_that_leaves_no_room_is_refused_only_where_there_is_text() -> None:
    long = Context(before="word " * 13, after="")
    with pytest.raises(RecordFault, match=r"has 13 tokens beside the chunk .* chunks of 16"):
        fake_chunker(16).chunk(["some text"], [long])
    (chunked,) = fake_chunker(16).chunk([" \n"], [long])
    assert chunked.chunks == chunked.inputs == ()


@settings(max_examples=60, deadline=None)
@given(
    document=st.text(max_size=200),
    before=st.text(max_size=8),
    after=st.text(max_size=8),
)
def test_chunk_and_context_together_keep_to_the_budget(
    document: str, before: str, after: str
) -> None:
    """Texts that touch may have more tokens together than apart."""
    context = Context(before=before, after=after)
    try:
        (chunked,) = fake_chunker(24).chunk([document], [context])
    except RecordFault:
        return
    for read in chunked.inputs:
        assert len(read.token_ids) <= 24


class TestWhole:
    """Documents that are one chunk."""

    @pytest.fixture
    def chunker(self) -> Chunker:
        return Chunker(tokenizer(), max_tokens=30, overlap_tokens=0, whole=True)

    def test_document_is_one_chunk_without_the_space_around_it(self, chunker: Chunker) -> None:
        document = "  One sentence. And another.\n\nA paragraph. \n"
        (chunked,) = chunker.chunk([document])
        (chunk,) = chunked.chunks
        assert (chunk.text, chunk.start) == (document.strip(), 2)
        assert chunker.chunk([" \n"])[0].chunks == ()

    @pytest.mark.parametrize(("words", "fits"), [(30, True), (31, False), (500, False)])
    def test_document_that_is_too_long_is_refused(
        self, chunker: Chunker, words: int, fits: bool
    ) -> None:
        document = "word " * words
        if fits:
            assert len(chunker.chunk([document])[0].chunks) == 1
            return
        with pytest.raises(RecordFault, match=f"has {words} tokens, more than the 30 .*chunking"):
            chunker.chunk([document])

    def test_context_takes_its_part_of_the_budget(self, chunker: Chunker) -> None:
        heading = Context(before="a b c ", after="")
        (chunked,) = chunker.chunk(["word " * 27], [heading])
        assert len(chunked.inputs[0].token_ids) == 30
        with pytest.raises(RecordFault, match="has 28 tokens, more than the 27"):
            chunker.chunk(["word " * 28], [heading])
