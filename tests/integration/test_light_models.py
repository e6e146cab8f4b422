"""Models opened without the library have the library's own facts, chunks, ids and vectors.

Vectors of batches are equal bit by bit; those of the query encoder in numpy to a millionth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding import EmbeddingModel, ModelUse, resolve_model
from pgqueue_embed.embedding.light_encoder import LightEncoder, open_light_encoder
from pgqueue_embed.embedding.one_call import USUAL_RUNS
from pgqueue_embed.embedding.precision import (
    BF16,
    BF16_WEIGHTS,
    FP16_WEIGHTS,
    FP32,
    FP32_PACKED,
    LOWEST_COSINE,
    Variant,
)
from pgqueue_embed.embedding.reader import TaskReader
from pgqueue_embed.embedding.rows import lowest_cosine, unit_rows
from pgqueue_embed.embedding.transfers import on_host
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL
from tests.support.light_models import LIGHT_ANIMALS, LIGHT_MODELS
from tests.support.nasty import CONTROL, NASTY
from tests.support.opened_models import by_library, chunks_of, is_light, load
from tests.support.zoo import ZOO

MOST_DIFFERENCE = 1e-6
BUNDLED = "bundled"
# Each network once; the other models are those of the zoo with other tokenizers and settings.
NETWORKS = [*sorted(LIGHT_ANIMALS), BUNDLED]
USES = {
    "prompt": ModelUse(document_prompt="see: ", query_prompt="no\nspace:"),
    "none": ModelUse(document_prompt="", query_prompt=""),
}


@dataclass(frozen=True)
class Same:
    """One model: its queries in numpy, all of it in torch, and by the library."""

    encoder: LightEncoder
    light: EmbeddingModel
    library: EmbeddingModel
    turn: int

    def some(self, texts: Sequence[str]) -> Iterator[str]:
        """Every second text that is not blank: of one model these, of the next one those."""
        return filter(str.strip, texts[self.turn % 2 :: 2])

    @property
    def is_tiny(self) -> bool:
        return self.light.dimensions < 100

    @property
    def readers(self) -> Iterator[tuple[TaskReader, TaskReader]]:
        yield self.light._documents, self.library._documents
        yield self.light._queries, self.library._queries


def open_same(name: str, folder: Path, **options: Any) -> Same:
    use = options.get("use", ModelUse())
    encoder = open_light_encoder(resolve_model(str(folder)), use)
    light = load(folder, **options)
    with by_library():
        library = load(folder, **options)
    assert encoder is not None
    assert (is_light(light), is_light(library)) == (True, False)
    return Same(encoder, light, library, turn=MODELS.index(name))


MODELS = [*NETWORKS, *(name for name in LIGHT_MODELS if name not in LIGHT_ANIMALS), *USES]


@pytest.fixture(scope="module", params=MODELS)
def same(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Same:
    name = request.param
    if name == BUNDLED:
        return open_same(name, resolve_model(DEFAULT_MODEL).path)
    folder = tmp_path_factory.mktemp("light") / "model"
    if name in USES:
        return open_same(name, ZOO["bert-cls-prompts"].save(folder), use=USES[name])
    return open_same(name, LIGHT_MODELS[name](folder))


def raw(model: EmbeddingModel, chunks: Sequence[Chunk], length: int | None = None) -> NDArray[Any]:
    with model.session():
        return on_host(model._compute(model._documents, chunks, length))


def batches(same: Same) -> Iterator[tuple[list[Chunk], int | None]]:
    """Yield batches of one length and of many, with room to spare and without."""
    chunks = chunks_of(same.light, *NASTY, *CONTROL)[:: 2 if same.is_tiny else 16]
    for first in range(0, len(chunks), 7):
        yield chunks[first : first + 7], None
    yield chunks[:1] * 3, None
    yield chunks[:2], min(96, same.light.max_sequence_tokens)


def test_pass_in_one_call_gives_the_vectors_of_its_operations(same: Same) -> None:
    import torch

    opened = same.light._open().network
    network = opened._network  # type: ignore[attr-defined]
    found = [same.light._documents.features(*each, "cpu") for each in batches(same)]
    inputs = [(each["input_ids"], each.get("attention_mask")) for each in found]
    with torch.no_grad():
        for is_packed in (False, True):
            if is_packed:
                opened.pack()
            for kind in {mask is None: (ids, mask) for ids, mask in inputs}.values():
                for _ in range(USUAL_RUNS):
                    network.in_one_call(*kind)
            assert set(network._one_call._calls) == {1, 2}
            for ids, mask in inputs:
                assert torch.equal(network.in_one_call(ids, mask), network.by_operations(ids, mask))


def test_facts_are_those_of_the_library(same: Same) -> None:
    cosine = same.library.facts.lowest_cosine
    assert cosine is not None
    assert cosine > 0.9999
    assert same.light.facts.lowest_cosine is None
    assert replace(same.light.facts, lowest_cosine=cosine) == same.library.facts
    for name in ("notes", "dimensions", "content_budget", "is_transformer", "limits"):
        assert getattr(same.light, name) == getattr(same.library, name)


def test_texts_are_read_as_by_the_library(same: Same) -> None:
    chunks = chunks_of(same.light, *NASTY, *CONTROL)
    assert len(chunks) > 40
    for ours, theirs in zip(chunks, chunks_of(same.library, *NASTY, *CONTROL), strict=True):
        assert (ours.start, ours.end, ours.text) == (theirs.start, theirs.end, theirs.text)
        assert np.array_equal(ours.token_ids, theirs.token_ids)
    for reader, library in same.readers:
        found, wanted = reader.sequences(chunks), library.sequences(chunks)
        assert [each.tolist() for each in found] == [each.tolist() for each in wanted]
        padded = [each.features(chunks[:7], None, "cpu") for each in (reader, library)]
        assert padded[0]["input_ids"].tolist() == padded[1]["input_ids"].tolist()
        assert (reader.overhead, reader._frame) == (library.overhead, library._frame)


def test_what_is_fed_is_what_the_library_feeds(same: Same) -> None:
    texts = [*same.some([*NASTY[::3], *CONTROL[::2]]), "pump " * 400]
    for ours, theirs in same.readers:
        for text in texts:
            for prompt in {None, ours.prompt}:
                fed = [each.network.feed(each.task, text, prompt).ids for each in (ours, theirs)]
                # The library overlooks prompts whose names it does not know by itself.
                assert fed[0] == fed[1] or (prompt is None and ours.prompt == "p: "), text


def test_vectors_are_equal_bit_by_bit(same: Same) -> None:
    for chunks, length in batches(same):
        assert np.array_equal(raw(same.light, chunks, length), raw(same.library, chunks, length))
    for text in filter(same.light._queries.fits, filter(str.strip, NASTY[::3])):
        assert np.array_equal(same.light.encode_query(text), same.library.encode_query(text)), text


def place(same: Same, variant: Variant) -> None:
    """Let both compute in another variant."""
    same.light._place("cpu", variant)
    with by_library():
        same.library._place("cpu", variant)


@pytest.mark.parametrize("same", NETWORKS, indirect=True)
def test_vectors_of_other_variants_are_equal_bit_by_bit(same: Same) -> None:
    some = list(islice(batches(same), 2))
    if not same.is_tiny:
        # Processors take their time with half precision.
        some = [(some[0][0][:2], some[0][1])]
    exact = [unit_rows(raw(same.light, chunks, length)) for chunks, length in some]
    try:
        for variant in (FP32_PACKED, BF16, BF16_WEIGHTS, FP16_WEIGHTS):
            place(same, variant)
            for (chunks, length), near in zip(some, exact, strict=True):
                found, wanted = raw(same.light, chunks, length), raw(same.library, chunks, length)
                assert np.array_equal(found, wanted, equal_nan=True), variant
                assert same.is_tiny or lowest_cosine(unit_rows(found), near) >= LOWEST_COSINE
    finally:
        place(same, FP32)


def test_queries_in_numpy_have_the_vectors_of_the_library(same: Same) -> None:
    compared = 0
    for text in same.some((*NASTY, *CONTROL)[:: 1 if same.is_tiny else 2]):
        found = same.encoder.encode(text)
        if found is not None:
            difference = np.abs(found - same.library.encode_query(text)).max()
            assert difference <= MOST_DIFFERENCE, (text, difference)
            compared += 1
    assert compared > 6


def test_all_that_is_light_is_in_the_zoo() -> None:
    assert ZOO.keys() >= LIGHT_ANIMALS
