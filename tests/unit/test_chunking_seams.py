"""Texts without a place to part them: bounded pieces, and chunks that keep every promise."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from unicodedata import category
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgqueue_embed.chunking import Chunker, chunker, encoding
from tests.unit.test_chunking import PARAGRAPH, TOKENIZERS, assert_sound, ids_of

# So small that a document of some thousand characters has many pieces.
PIECE = 256
WHOLE = 1024
MOST = 512

RUNS = {
    "quotation marks": '"',
    "one letter": "a",
    "words with hyphens": "ab-",
    "base64": "TWFuIGlzIGRpc3Rpbmd1aXNoZWQ/+sPP",
    "emoji": "🙂",
    "emoji with joiners": "👩‍⚕️",
    "flags": "🇩🇪",
    "letters with marks": "e\u0301",
    "marks alone": "\u0301",
    "Thai": "อุปกรณ์หยุดทำงาน",
    "Han": "设备突然停止",
    "Hangul": "장치가",
    "of no width": "\u200b",
    "control characters": "\x01",
    "ligatures": "ﬁﷺ",
}

DOCUMENTS = st.lists(
    st.tuples(
        st.sampled_from([*RUNS.values(), *string.ascii_lowercase]),
        st.integers(1, 500),
        st.sampled_from(["", "", " ", "\n\n", ". "]),
    ),
    min_size=1,
    max_size=8,
).map(lambda parts: "".join(unit * count + between for unit, count, between in parts))


@contextmanager
def small_pieces() -> Iterator[None]:
    """Part documents at once, so that hundreds of them can be tried."""
    with (
        mock.patch.object(encoding, "PIECE_CHARACTERS", PIECE),
        mock.patch.object(encoding, "WHOLE_CHARACTERS", WHOLE),
        mock.patch.object(chunker, "MOST_CHARACTERS", MOST),
    ):
        yield


@cache
def cutter(name: str, max_tokens: int, overlap_tokens: int, *, whole: bool = False) -> Chunker:
    return Chunker(
        TOKENIZERS[name], max_tokens=max_tokens, overlap_tokens=overlap_tokens, whole=whole
    )


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(document=DOCUMENTS, budget=st.sampled_from([(64, 0), (64, 16), (300, 40)]))
def test_chunks_of_a_parted_text_keep_every_promise(
    name: str, document: str, budget: tuple[int, int]
) -> None:
    with small_pieces():
        (result,) = cutter(name, *budget).chunk([document])
    assert_sound(document, result.chunks, max_tokens=budget[0])
    for chunk in result.chunks:
        if len(chunk.text) <= WHOLE:
            assert list(chunk.token_ids) == ids_of(name, chunk.text)


@settings(max_examples=60, deadline=None)
@given(document=DOCUMENTS)
def test_no_piece_is_larger_than_half_more_than_wanted(document: str) -> None:
    with small_pieces():
        for size in (PIECE, WHOLE):
            pieces = list(encoding._pieces(document, size, 0))
            assert "".join(piece.text for piece in pieces) == document
            assert all(piece.end - piece.start <= size + PIECE // 2 for piece in pieces)


@settings(max_examples=60, deadline=None)
@given(document=DOCUMENTS)
def test_text_that_must_stay_whole_is_one_chunk(document: str) -> None:
    with small_pieces():
        (result,) = cutter("wordpiece", 100_000, 0, whole=True).chunk([document])
    assert len(result.chunks) <= 1
    assert_sound(document, result.chunks, max_tokens=100_000)


WORDS = st.lists(
    st.sampled_from(["pump", "unbelievable", "设备", "Überprüfung", "3.14", "🙂", "x-200", '"no"']),
    min_size=200,
    max_size=400,
)


@settings(max_examples=60, deadline=None)
@given(words=WORDS, between=st.sampled_from([" ", "\n", "\r\n", ", ", "。", "\n\n"]))
def test_pieces_of_a_text_with_places_to_part_it_are_the_whole(
    words: list[str], between: str
) -> None:
    document = between.join(words)
    with small_pieces():
        (tokens,) = encoding.tokenise(cutter("wordpiece", 64, 0)._reader, [document])
    assert tokens.ids.tolist() == ids_of("wordpiece", document)


def test_word_at_the_end_is_not_parted() -> None:
    document = "。" * (PIECE - 2) + "pump"
    with small_pieces():
        assert encoding._seam(document, PIECE) == len(document)


@pytest.mark.parametrize("unit", ["e\u0301", "👩‍⚕️", "ก็"])
def test_no_piece_begins_with_a_mark_of_the_one_before(unit: str) -> None:
    with small_pieces():
        pieces = list(encoding._pieces(unit * 2_000, PIECE, 0))
    assert len(pieces) > 5
    for before, after in itertools.pairwise(pieces):
        assert not category(after.text[0]).startswith("M")
        assert "\u200d" not in (before.text[-1], after.text[0])


@pytest.mark.parametrize("unit", RUNS.values(), ids=RUNS)
def test_progress_is_told_all_along_a_text_without_a_space(
    unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = unit * (200_000 // len(unit))
    calls: list[None] = []
    with monkeypatch.context() as patched:
        patched.setattr(encoding, "_MOST_GROUP_CHARACTERS", 1 << 16)
        cutter("wordpiece", 254, 32).chunk([document], on_progress=lambda: calls.append(None))
    assert len(calls) >= len(document) // (1 << 16)


def test_progress_is_told_while_slices_are_tokenised_again() -> None:
    document = PARAGRAPH * 2_000
    calls: list[None] = []
    cutter("byte-bpe", 254, 32).chunk([document], on_progress=lambda: calls.append(None))
    # Once for the document, and once more for its slices.
    assert len(calls) >= 2 * (len(document) // encoding._MOST_GROUP_CHARACTERS)


def test_what_progress_raises_ends_a_text_without_a_space() -> None:
    def leave() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cutter("wordpiece", 254, 32).chunk(['"' * 1_000_000], on_progress=leave)


def test_slow_reading_makes_the_next_group_smaller_and_quick_reading_larger() -> None:
    usual = 100_000
    assert encoding._next_group(usual, 2.0) < usual / 2
    assert encoding._next_group(usual, 0.25) == 2 * usual
    assert encoding._next_group(usual, 0.0) == encoding._MOST_GROUP_CHARACTERS
