"""nanotoken is used where it agrees with the model's tokenizer, and nowhere else."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
from tokenizers import Tokenizer

from pgqueue_embed.chunking import nanotoken_reader, readers
from pgqueue_embed.chunking.encoding import private_copy
from pgqueue_embed.chunking.nanotoken_reader import Agreed, Disagreement, NanotokenReader
from pgqueue_embed.chunking.readers import describe_reader, reader_of
from pgqueue_embed.chunking.reading import Reading, TextReader
from pgqueue_embed.chunking.words import WordReader
from pgqueue_embed.doctor import Check, Mark
from pgqueue_embed.doctor.machine import check_reader
from pgqueue_embed.errors import RecordFault
from tests.unit.test_chunking import PARAGRAPH, minilm

pytest.importorskip("nanotoken", reason="the extra nanotoken is not there")

TEXTS = [PARAGRAPH * 4, "the pump 🙂🙂 stopped", ""]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return private_copy(minilm())


class Mistaken:
    """A library that reads ``word`` as another one of the vocabulary."""

    def __init__(self, library: Any, word: str, other: str) -> None:
        self._library = library
        self._word, self._other = map(library.token_to_id, (word, other))

    def encode_batch(self, texts: list[str], **options: Any) -> Any:
        found = self._library.encode_batch(texts, **options)
        found.ids[found.ids == self._word] = self._other
        return found


def mistaking(word: str, other: str) -> Any:
    real = nanotoken_reader._loaded
    return mock.patch.object(
        nanotoken_reader, "_loaded", lambda state: Mistaken(real(state), word, other)
    )


def read_much(reader: NanotokenReader) -> Reading:
    """Return what is read once the library is worth to be loaded."""
    with mock.patch.object(reader, "_characters_left", 1):
        reader.read(TEXTS)
    return reader.read(TEXTS)


def assert_exact(found: Reading, tokenizer: Tokenizer) -> None:
    exact = TextReader(tokenizer).read(TEXTS)
    assert found.ids.tolist() == exact.ids.tolist()
    assert np.array_equal(found.tokens([0, 1]), exact.tokens([0, 1]))


def told(tokenizer: Tokenizer) -> Check:
    (check,) = check_reader("model", tokenizer)
    return check


def test_much_text_is_read_by_the_library_and_doctor_says_so(tokenizer: Tokenizer) -> None:
    reader = reader_of(tokenizer)
    assert isinstance(reader, NanotokenReader)
    assert not isinstance(reader.read(TEXTS), nanotoken_reader.NanotokenReading)
    found = read_much(reader)
    assert isinstance(found, nanotoken_reader.NanotokenReading)
    assert_exact(found, tokenizer)
    assert "nanotoken" in told(tokenizer).finding


def test_library_that_reads_a_known_text_otherwise_is_not_used_and_this_is_told(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    # A word of the same length, that no offset betrays, and one that takes another place.
    piece = sorted(tokenizer.get_vocab())[-1 - (len(tokenizer.get_vocab()) - 1) % 13]
    with mistaking(piece, "pump"):
        with pytest.raises(Disagreement):
            describe_reader(tokenizer)
        reader = reader_of(tokenizer)
        assert isinstance(reader, NanotokenReader)
        assert_exact(read_much(reader), tokenizer)
        assert "nanotoken is not used" in caplog.text
        check = told(tokenizer)
    assert check.mark is Mark.WARNING
    assert "nanotoken is not used" in check.finding


def test_text_that_the_library_misreads_all_the_same_is_refused(tokenizer: Tokenizer) -> None:
    agreed = Agreed(tokenizer, WordReader(tokenizer))
    agreed._library = Mistaken(agreed._library, "the", "them")
    found = agreed.read(TEXTS)
    with pytest.raises(RecordFault, match="pip uninstall nanotoken"):
        found.tokens([0])


def test_library_that_is_of_another_version_or_absent_costs_nothing_but_time(
    tokenizer: Tokenizer,
) -> None:
    with mock.patch.object(nanotoken_reader, "_loaded", side_effect=AttributeError("gone")):
        reader = reader_of(tokenizer)
        assert isinstance(reader, NanotokenReader)
        assert_exact(read_much(reader), tokenizer)
        assert "AttributeError: gone" in told(tokenizer).finding
    with mock.patch.object(readers, "is_installed", return_value=False):
        assert isinstance(reader_of(tokenizer), WordReader)
        assert told(tokenizer).mark is Mark.OK
