"""Every kind of model gives the vectors of sentence-transformers, or is refused by name.

The reference is `encode_document` and `encode_query` in fp32, one text at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from pgqueue_embed.chunking import Chunk, Chunker
from pgqueue_embed.embedding import EmbeddingModel, ModelUse, resolve_model
from pgqueue_embed.embedding.light_encoder import open_light_encoder
from pgqueue_embed.embedding.light_network import open_light
from pgqueue_embed.embedding.rows import Vectors, lowest_cosine, unit_rows
from tests.support.libraries import SentenceTransformer, torch
from tests.support.light_models import LIGHT_ANIMALS
from tests.support.nasty import CONTROL, NASTY
from tests.support.opened_models import load
from tests.support.zoo import LIMIT, ZOO, Animal, router_model, static_model
from tests.support.zoo_tokenizers import ROBERTA

SAME = 0.99999


@dataclass(frozen=True)
class Pair:
    """A model as pgembed loads it, and as sentence-transformers does."""

    name: str
    model: EmbeddingModel
    reference: SentenceTransformer

    def chunks(self, documents: tuple[str, ...], max_tokens: int | None = None) -> list[Chunk]:
        budget = max_tokens or self.model.content_budget
        chunker = Chunker(self.model.tokenizer, max_tokens=budget, overlap_tokens=budget // 8)
        chunked = chunker.chunk(documents)
        for document, each in zip(documents, chunked, strict=True):
            for chunk in each.chunks:
                assert document[chunk.start : chunk.end] == chunk.text
        return [chunk for each in chunked for chunk in each.chunks]

    def expected(self, chunks: list[Chunk]) -> Vectors:
        return unit_rows(one_by_one(self.reference.encode_document, [each.text for each in chunks]))

    def fed_tokens(self, text: str) -> int:
        """How many tokens the reference itself reads for a document, after any cut."""
        return fed(self.reference, text)


def one_by_one(encode: Callable[..., Any], texts: list[str]) -> np.ndarray[Any, Any]:
    vectors: np.ndarray[Any, Any] = encode(texts, batch_size=1, show_progress_bar=False)
    return vectors


def fed(reference: SentenceTransformer, text: str) -> int:
    features = reference.preprocess([text], prompt=prompt_of(reference), task="document")
    return int(features["input_ids"].shape[-1])


def prompt_of(reference: SentenceTransformer) -> str | None:
    prompt: str | None = reference.prompts.get("document")
    return prompt


def load_pair(name: str, folder: Path) -> Pair:
    reference = SentenceTransformer(
        str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
    )
    model = load(folder)
    return Pair(name, model, reference)


def mixed_router(folder: Path) -> Path:
    """Queries are looked up in a table, documents read by a network: another tokenizer, too."""
    document = Animal(architecture="Roberta", tokenizer="byte-bpe", specials=ROBERTA)
    table = SentenceTransformer(str(static_model(folder.with_name("table"))), device="cpu")
    return router_model(
        folder, query=[table[0]], document=document.modules(folder.with_name("document"))
    )


MADE = {
    "static-wordpiece": static_model,
    "static-byte-bpe": lambda folder: static_model(folder, "byte-bpe", ROBERTA),
    "static-metaspace": lambda folder: static_model(folder, "metaspace", ROBERTA),
    "router": mixed_router,
}


@pytest.fixture(scope="module", params=[*ZOO, *MADE])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("zoo") / "model"
    if request.param in ZOO:
        ZOO[request.param].save(folder)
    else:
        MADE[request.param](folder)
    return load_pair(request.param, folder)


def controls_of(tokenizer: Any) -> set[str]:
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    added = backend.get_added_tokens_decoder().values()
    return {token.content for token in added if token.special}


def document_tokenizer(reference: SentenceTransformer) -> Any:
    first = reference[0]
    return (first.sub_modules["document"][0] if hasattr(first, "sub_modules") else first).tokenizer


def read_as_text(pair: Pair) -> tuple[str, ...]:
    """The documents that hold no control token of this model, which the reference would obey."""
    first = pair.reference[0]
    routes = getattr(first, "sub_modules", {"": [first]}).values()
    controls = set().union(*(controls_of(modules[0].tokenizer) for modules in routes))
    return tuple(
        text for text in (*NASTY, *CONTROL) if not any(token in text for token in controls)
    )


def test_of_the_zoo_those_are_light_that_are_said_to_be(pair: Pair) -> None:
    folder, is_light = pair.model._resolved.path, pair.name in LIGHT_ANIMALS
    encoder = open_light_encoder(resolve_model(str(folder)), ModelUse())
    assert (encoder is not None, open_light(folder, ModelUse()) is not None) == (is_light,) * 2


def test_ids_are_those_that_the_model_reads(pair: Pair) -> None:
    chunks = pair.chunks(read_as_text(pair))
    assert len(chunks) > 10
    prompt = prompt_of(pair.reference)
    for chunk in chunks:
        found = pair.model._documents.features([chunk], None, "cpu")["input_ids"]
        wanted = pair.reference.preprocess([chunk.text], prompt=prompt, task="document")
        assert found.flatten().tolist() == wanted["input_ids"].flatten().tolist(), chunk.text


@pytest.mark.parametrize(("max_tokens", "every", "most"), [(None, 3, 32), (13, 8, 20)])
def test_stored_vectors_are_those_of_the_model(
    pair: Pair, max_tokens: int | None, every: int, most: int
) -> None:
    chunks = pair.chunks(read_as_text(pair)[::every], max_tokens)[:most]
    assert len(chunks) > 10
    alone = np.concatenate([pair.model.forward([chunk]) for chunk in chunks])
    expected = pair.expected(chunks)
    worst = int(np.einsum("ij,ij->i", alone, expected).argmin())
    assert lowest_cosine(alone, expected) >= SAME, chunks[worst].text
    together = np.concatenate(
        [pair.model.forward(chunks[first : first + 16]) for first in range(0, len(chunks), 16)]
    )
    assert lowest_cosine(together, expected) >= SAME


def test_query_vectors_are_those_of_the_model(pair: Pair) -> None:
    queries = [text for text in read_as_text(pair) if len(text) < 60 and text.strip()][::2]
    wanted = unit_rows(one_by_one(pair.reference.encode_query, queries))
    for query, expected in zip(queries, wanted, strict=True):
        found = pair.model.encode_query(query)
        assert lowest_cosine(found[None], expected[None]) >= SAME, query


def test_nothing_is_cut_off(pair: Pair) -> None:
    """The reference reads as many tokens of a full chunk as of its text without any limit."""
    longest = 0
    for chunk in pair.chunks(read_as_text(pair)):
        count = pair.fed_tokens(chunk.text)
        assert count <= pair.model.max_sequence_tokens
        longest = max(longest, count)
        more = pair.fed_tokens(f"{chunk.text} pump")
        assert more > count or count == pair.model.max_sequence_tokens
    assert longest > min(LIMIT, pair.model.max_sequence_tokens) * 0.75


def test_spelled_control_tokens_are_text_in_documents_and_queries(pair: Pair) -> None:
    own = document_tokenizer(pair.reference)
    backend: Tokenizer = getattr(own, "backend_tokenizer", own)
    control_ids = {
        number for number, token in backend.get_added_tokens_decoder().items() if token.special
    } - {backend.token_to_id("[UNK]"), backend.token_to_id("<unk>")}
    for chunk in pair.chunks(CONTROL):
        assert not control_ids & set(chunk.token_ids.tolist()), chunk.text
        with_prompt = pair.model.forward([chunk])[0]
        assert np.isfinite(with_prompt).all()


def test_a_query_for_the_exact_text_finds_it(pair: Pair) -> None:
    if pair.model.facts.document_prompt != pair.model.facts.query_prompt or pair.model.facts.routes:
        pytest.skip("documents and queries are read differently by this model")
    chunks = pair.chunks(CONTROL)
    for chunk, vector in zip(chunks, pair.model.forward(chunks), strict=True):
        assert float(vector @ pair.model.encode_query(chunk.text)) >= SAME, chunk.text
