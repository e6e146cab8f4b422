"""Quicker readers, by words or nanotoken, read as the tokenizer does the whole text."""

from __future__ import annotations

import csv
import gzip
import unicodedata
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from tokenizers.normalizers import BertNormalizer

from pgqueue_embed.chunking import ChunkedDocument, Chunker, chunker, nanotoken_reader, words
from pgqueue_embed.chunking.encoding import private_copy
from pgqueue_embed.chunking.nanotoken_reader import Agreed
from pgqueue_embed.chunking.readers import reader_of
from pgqueue_embed.chunking.reading import Reader, TextReader
from pgqueue_embed.chunking.words import WordReader
from tests.unit.test_chunking import CHINESE, DOCUMENTS, PARAGRAPH, TOKENIZERS, minilm

REPORTS = Path(__file__).parents[1] / "data" / "maude_sample.csv.gz"
LAST_CODE = 0x2FFFF
SURROGATES = range(0xD800, 0xE000)
STEP = 11

# Whether it cleans, spaces Chinese, strips accents (None: where it lowers) and lowers.
VARIANTS = {
    "MiniLM": (True, True, None, True),
    "cased": (True, True, None, False),
    "cased, no accents": (True, True, True, False),
    "lower, accents": (True, True, False, True),
    "unclean": (False, True, True, True),
    "Chinese in words": (True, False, None, True),
    "as it is": (False, False, False, False),
}


@cache
def tokenizer(variant: str) -> Tokenizer:
    made = private_copy(minilm())
    clean, chinese, accents, lower = VARIANTS[variant]
    made.normalizer = BertNormalizer(
        clean_text=clean, handle_chinese_chars=chinese, strip_accents=accents, lowercase=lower
    )
    return made


@cache
def readers(variant: str) -> tuple[list[Reader], TextReader]:
    """Return those that are to agree with the last one."""
    words = WordReader(tokenizer(variant))
    ours: list[Reader] = [words]
    if nanotoken_reader.is_installed():
        ours.append(Agreed(tokenizer(variant), words))
    return ours, TextReader(tokenizer(variant))


def assert_read_alike(variant: str, texts: Sequence[str]) -> None:
    some, whole = readers(variant)
    theirs, ours = whole.read(texts), [reader.read(texts) for reader in some]
    for each in ours:
        assert each.sums == theirs.sums
        assert np.array_equal(each.ids, theirs.ids)
    for numbers in (range(len(texts)), range(1, len(texts), 2)):
        if numbers:
            wanted = theirs.tokens(numbers)
            assert all(np.array_equal(each.tokens(numbers), wanted) for each in ours)


def kind_of(code: int) -> object:
    """Return what characters share that a reader treats alike; of one with other forms, itself.

    Those are what has marks, a small letter or a place in the vocabulary.
    """
    if code in SURROGATES:
        return code
    character = chr(code)
    number = TOKENIZERS["wordpiece"].token_to_id
    if number(character) is not None or number(f"##{character}") is not None:
        return code
    if character.lower() != character or not unicodedata.is_normalized("NFD", character):
        return code
    describe = (unicodedata.category, unicodedata.combining, unicodedata.east_asian_width)
    return [each(character) for each in describe]


@cache
def telling_codes() -> list[int]:
    """Return all code points but most of those within a row of one kind: in all 37,000."""
    kinds = [kind_of(code) for code in range(LAST_CODE + 2)]
    return [
        code
        for code in range(1, LAST_CODE + 1)
        if code not in SURROGATES
        and (not code % STEP or not kinds[code - 1] == kinds[code] == kinds[code + 1])
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_characters_of_each_kind_are_read_alike_wherever_they_stand(variant: str) -> None:
    codes = telling_codes()[:: 1 if variant == "MiniLM" else 3]
    for first in range(0, len(codes), 4096):
        characters = map(chr, codes[first : first + 4096])
        assert_read_alike(variant, [f"a{c}b {c}\u0301 中{c}" for c in characters])


ODD = st.sampled_from(
    [
        *(
            " ",
            "\t",
            "\r",
            "\n",
            "\x0b",
            "\x0c",
            "\x1c",
            "\x1f",
            "\x85",
            "\xa0",
            "\u2003",
            "\u2028",
        ),
        *(
            "\u3000",
            "\x00",
            "\x07",
            "\ufffd",
            "\ufeff",
            "\u200b",
            "\u200d",
            "\xad",
            "\u0301",
            "\u0327",
        ),
        *(
            "a",
            "A",
            "é",
            "e\u0301",
            "İ",
            "ß",
            "ﬁ",
            "中",
            "\uf900",
            "\U0002f800",
            "が",
            "각",
            "ﷺ",
            "Σ",
        ),
        *(
            ".",
            "，",
            "“",
            "-",
            "$",
            "=",
            "\u0338",
            "≠",
            ";",
            "[SEP]",
            "[UNK]",
            "\0[SEP]",
            "##s",
            "🙂",
        ),
        *("pump" * 30, "\u302e", "\u1100\u1161", "\U0002ebf0", "ϒ\u0301"),
    ]
)
TEXTS = st.lists(st.one_of(DOCUMENTS, st.lists(ODD, max_size=30).map("".join)), max_size=6)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=150, deadline=None)
@given(texts=TEXTS)
def test_texts_are_read_alike(variant: str, texts: list[str]) -> None:
    assert_read_alike(variant, texts)


def by_nanotoken(made: Tokenizer) -> Reader:
    return Agreed(made, WordReader(made))


@cache
def chunkers(max_tokens: int, overlap_tokens: int) -> list[Chunker]:
    """Return chunkers that are to cut alike, the last one by whole texts."""
    made = []
    by_library = [by_nanotoken] if nanotoken_reader.is_installed() else []
    for reader in (WordReader, *by_library, TextReader):
        with mock.patch.object(chunker, "reader_of", reader):
            made.append(
                Chunker(
                    TOKENIZERS["wordpiece"], max_tokens=max_tokens, overlap_tokens=overlap_tokens
                )
            )
    return made


def ids_of(document: ChunkedDocument) -> list[list[int]]:
    return [chunk.token_ids.tolist() for chunk in document.chunks]


def assert_cut_alike(documents: Sequence[str], budget: tuple[int, int]) -> None:
    *some, theirs = (each.chunk(documents) for each in chunkers(*budget))
    for ours in some:
        assert ours == theirs
        assert list(map(ids_of, ours)) == list(map(ids_of, theirs))


@settings(max_examples=200, deadline=None)
@given(documents=TEXTS, budget=st.sampled_from([(8, 2), (32, 8), (128, 20)]))
def test_documents_are_cut_alike(documents: list[str], budget: tuple[int, int]) -> None:
    assert_cut_alike(documents, budget)


@pytest.mark.parametrize("budget", [(16, 4), (128, 20)])
def test_real_documents_are_cut_alike(budget: tuple[int, int]) -> None:
    with gzip.open(REPORTS, "rt", encoding="utf-8", newline="") as file:
        reports = [row["foi_text"] for row in csv.DictReader(file)]
    base64 = "TWFuIGlzIGRpc3Rpbmd1aXNoZWQ/+sPP" * 3_000
    assert_cut_alike([*reports[::10], PARAGRAPH * 400, CHINESE * 900, base64], budget)


def adding(made: Tokenizer) -> None:
    made.add_tokens([AddedToken("new pump", special=False)])


def lowered(made: Tokenizer) -> None:
    made.normalizer = normalizers.Lowercase()


def by_space(made: Tokenizer) -> None:
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()


def reading_controls(made: Tokenizer) -> None:
    made.encode_special_tokens = False


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made.enable_truncation(8),
        lambda made: made.enable_padding(),
        adding,
        lowered,
        by_space,
        reading_controls,
    ],
)
def test_tokenizer_that_may_read_over_a_space_reads_whole_texts(
    change: Callable[[Tokenizer], None],
) -> None:
    made = private_copy(minilm())
    assert not isinstance(reader_of(made), TextReader)
    change(made)
    assert isinstance(reader_of(made), TextReader)


def test_private_copy_is_not_copied_again() -> None:
    made = private_copy(minilm())
    assert private_copy(made) is made
    assert private_copy(minilm(), control_tokens=True) is not made


@pytest.mark.parametrize("name", ["byte-bpe", "sentencepiece"])
def test_tokenizer_of_another_kind_reads_whole_texts(name: str) -> None:
    assert isinstance(reader_of(private_copy(TOKENIZERS[name])), TextReader)


def test_words_that_are_kept_are_limited_and_those_of_every_text_stay() -> None:
    reader, whole = WordReader(tokenizer("MiniLM")), readers("MiniLM")[1]
    with mock.patch.object(words, "MOST_WORDS", 100):
        for number in range(50):
            texts = [f"the pump {number}-{n} {'x' * 50}{n}" for n in range(20)]
            assert reader.read(texts).ids.tolist() == whole.read(texts).ids.tolist()
            kept = {**reader._known, **reader._older}
            assert len(kept) <= 200
            assert {"the", "pump"} <= kept.keys()
            assert max(map(len, kept)) <= words.LONGEST_WORD


def test_many_threads_read_with_one_reader() -> None:
    reader, whole = WordReader(tokenizer("MiniLM")), readers("MiniLM")[1]

    def read(number: int) -> bool:
        texts = [f"word{(number * 7 + n) % 300} of 中{n} pump" for n in range(200)]
        return bool(np.array_equal(reader.read(texts).ids, whole.read(texts).ids))

    with mock.patch.object(words, "MOST_WORDS", 50), ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(60)))
