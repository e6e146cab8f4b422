"""Finding stored chunks in a document: verbatim, respelt by a tokenizer, or not at all."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqueue_embed.adopt.locate import Span, locate


def slices(document: str, texts: list[str]) -> list[str] | None:
    places = locate(document, texts)
    return None if places is None else [document[each.start : each.end] for each in places]


@pytest.mark.parametrize(
    ("document", "texts", "found"),
    [
        ("One. Two. Three.", ["One. Two.", "Three."], ["One. Two.", "Three."]),
        ("One. Two. Three.", ["Three.", "Two.", "One."], ["One.", "Two.", "Three."]),
        ("One. Two. Three.", ["One. Two.", "Two. Three."], ["One. Two.", "Two. Three."]),
        ("Two words", ["Two ", " words"], ["Two ", " words"]),
        ("IT'S 4.5X20MM.", ["[CLS] it ' s 4. 5x20mm. [SEP]"], ["IT'S 4.5X20MM."]),
        ("Déjà-vu, là", ["deja - vu,", "la"], ["Déjà-vu,", "là"]),
        ("Cafe\u0301 noir", ["cafe", "noir"], ["Cafe\u0301", "noir"]),
        ("设备停止工作。", ["设 备 停 止", "工 作 。"], ["设备停止", "工作。"]),
        ("no no no", ["no", "no", "no"], ["no", "no", "no"]),
        ("a b a", ["a", "b", "a"], ["a", "b", "a"]),
    ],
)
def test_texts_that_cover_a_document_are_found_in_it(
    document: str, texts: list[str], found: list[str]
) -> None:
    assert slices(document, texts) == found


@pytest.mark.parametrize(
    ("document", "texts"),
    [
        ("One. Two. Three.", ["One.", "Three."]),
        ("One. Two. Three.", ["One. Two."]),
        ("One. Two.", ["One. Two.", "Three."]),
        ("One. Two.", ["One. Two.", ""]),
        ("One. Two.", ["One. Two.", "[SEP]"]),
        ("naive", ["na ##ive"]),
        ("One", ["One", "One"]),
        ("", ["One"]),
        ("One", []),
    ],
    ids=str,
)
def test_texts_that_leave_something_out_or_are_of_another_document_are_not(
    document: str, texts: list[str]
) -> None:
    assert locate(document, texts) is None


def test_place_tells_which_text_it_is_of() -> None:
    assert locate("One. Two.", ["Two.", "One."]) == [
        Span(row=1, start=0, end=4),
        Span(row=0, start=5, end=9),
    ]


# Marks and control characters, which a tokenizer drops, may go to either side of a cut.
LETTERS = st.characters(categories=("L", "N", "P", "S", "Zs"))


@given(st.text(LETTERS, min_size=1), st.data())
def test_whatever_is_cut_from_a_document_without_gaps_covers_it(
    document: str, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(document) - 1)))))
    bounds = [0, *(cut for cut in cuts if cut < len(document)), len(document)]
    texts = [document[start:end] for start, end in pairwise(bounds)]
    for place in locate(document, texts) or []:
        assert document[place.start : place.end].strip() == texts[place.row].strip()
