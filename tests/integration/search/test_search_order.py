"""The order of what is found: by a cross-encoder as the library has it, and for variety."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pgqueue_embed
from pgqueue_embed.db.session import Connection
from pgqueue_embed.embedding.cross_encoder import cross_encoder
from pgqueue_embed.errors import ModelError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search import asked, query_vector
from pgqueue_embed.vector_search.hit import Hit
from pgqueue_embed.vector_search.variety import scaled, varied
from tests.support.commands import pgembed
from tests.support.searching import QUERY, SEARCHED, ask

PREPARED = SEARCHED

WORDS = "why the pump stopped"


def save_reranker(folder: Path, labels: int = 1) -> Path:
    """Save an untrained cross-encoder whose scores tell texts apart."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from tests.support.zoo import Animal, spread
    from tests.support.zoo_tokenizers import BERT

    Animal(architecture="Bert", tokenizer="wordpiece", specials=BERT).save_base(folder)
    torch.manual_seed(3)
    config = BertConfig.from_pretrained(folder, num_labels=labels)
    network = BertForSequenceClassification(config)
    spread(network)
    with torch.no_grad():
        # Away from where a sigmoid is flat.
        network.classifier.weight.mul_(0.05)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reranker(tmp_path_factory.mktemp("reranker") / "model")


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every query is the first direction."""

    class Encoder:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def encode(self, _query: str, _truncate_dim: int | None) -> object:
            return QUERY

        def unknown_share(self, _query: str) -> float:
            return 0.0

    monkeypatch.setattr(query_vector, "QueryEncoder", Encoder)
    monkeypatch.setattr(asked, "encoder_of", Encoder)


def places(hits: list[Hit]) -> list[tuple[str, int | None]]:
    return [(hit.key_text, hit.chunk_index) for hit in hits]


def predicted(folder: Path, hits: list[Hit]) -> list[float]:
    """Return what sentence-transformers says of the chunks."""
    from sentence_transformers import CrossEncoder

    scores = CrossEncoder(str(folder), device="cpu").predict([(WORDS, hit.chunk) for hit in hits])
    return [float(score) for score in scores]


# In words that the tokenizer knows.
TELL_APART = """
update public.reports_chunks
set text_chunk = words[1 + fulltext_id % 7] || ' ' || words[1 + fulltext_id / 7 % 7]
from (values ('{infusion,pump,stopped,alarm,nobody,hurt,retrieve}'::text[])) as given (words)
"""


def test_the_nearest_are_ordered_as_the_library_orders_them(
    conninfo: str, connection: Connection, reports: Pipeline, reranker: Path
) -> None:
    connection.execute(TELL_APART)
    nearest = ask(conninfo, reports, limit=40)
    scores = predicted(reranker, nearest[:30])
    order = sorted(range(30), key=lambda at: -scores[at])
    assert len(set(scores)) > 10
    assert order != list(range(30))
    expected = [nearest[at] for at in order] + nearest[30:]
    own = pgqueue_embed.Database(conninfo).pipeline("reports")
    options: dict[str, Any] = {"rerank": str(reranker), "rerank_top": 30, "threshold": -1}
    found = pgqueue_embed.search(own, WORDS, limit=40, **options)
    assert places(found) == places(expected)
    assert [hit.score for hit in found] == [hit.score for hit in expected]
    given = [hit.rerank_score for hit in found]
    assert given[:30] == pytest.approx(sorted(scores, reverse=True))
    assert given[30:] == [None] * 10
    pages = [pgqueue_embed.search(own, WORDS, limit=8, offset=at, **options) for at in (0, 8, 32)]
    assert pages == [found[:8], found[8:16], found[32:40]]


def test_the_command_shows_both_scores(conninfo: str, reports: Pipeline, reranker: Path) -> None:
    options = ("--rerank", str(reranker), "--rerank-top", "9", "--per-record", "--device", "cpu")
    found = json.loads(pgembed(conninfo, "search", "reports", WORDS, *options, "--json").stdout)
    assert [set(hit) >= {"key", "score", "rerank_score", "matched"} for hit in found] == [True] * 5
    scores = [hit["rerank_score"] for hit in found]
    assert scores == sorted(scores, reverse=True)
    shown = pgembed(conninfo, "search", "reports", WORDS, *options).stdout
    assert shown.startswith(f"{scores[0]:.3f}  record {found[0]['key']}")
    assert f"cosine {found[0]['score']:.3f}" in shown
    plain = json.loads(pgembed(conninfo, "search", "reports", WORDS, "--json").stdout)
    assert "rerank_score" not in plain[0]


def marginal_relevance(vectors: np.ndarray, relevance: np.ndarray, trade_off: float) -> list[int]:
    """Say the definition again, slowly."""
    order: list[int] = []
    while len(order) < len(vectors):

        def worth(at: int) -> float:
            nearest = max((float(vectors[at] @ vectors[other]) for other in order), default=0.0)
            return trade_off * float(relevance[at]) - (1 - trade_off) * nearest

        order.append(max((at for at in range(len(vectors)) if at not in order), key=worth))
    return order


def test_variety_is_maximal_marginal_relevance() -> None:
    random = np.random.default_rng(5)
    vectors = random.standard_normal((30, 6)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    relevance = np.sort(random.random(30).astype(np.float32))[::-1]
    for trade_off in (0.0, 0.3, 0.7, 1.0):
        order = varied(relevance, vectors, trade_off)
        assert order == marginal_relevance(unit, relevance, trade_off)
    assert varied(relevance, vectors, 1.0) == list(range(30))
    assert scaled(np.array([-4, 0, 4], np.float32)).tolist() == [0, 0.5, 1]
    assert scaled(np.array([7], np.float32)).tolist() == [1]


@pytest.mark.parametrize("vector_type", ["vector", "halfvec"])
def test_variety_is_of_the_stored_vectors(
    conninfo: str, connection: Connection, reports: Pipeline, vector_type: str
) -> None:
    """With a condition and columns of the source, too."""
    if vector_type == "halfvec":
        connection.execute(
            "alter table public.reports_chunks alter embedding type public.halfvec(8);"
            "update pgembed.pipelines set vector_type = 'halfvec'"
        )
    nearest = ask(conninfo, reports, limit=20)
    stored = dict(
        connection.execute(
            "select fulltext_id || '-' || chunk_index, embedding::real[] from public.reports_chunks"
        ).fetchall()
    )
    vectors = np.array([stored[f"{hit.key_text}-{hit.chunk_index}"] for hit in nearest], np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    relevance = np.array([hit.score for hit in nearest], np.float32)
    order = marginal_relevance(vectors, relevance, 0.2)
    varied_hits = ask(conninfo, reports, limit=20, rerank_top=20, mmr=0.2)
    assert places(varied_hits) == [places(nearest)[at] for at in order] != places(nearest)
    filtered = ask(conninfo, reports, limit=3, mmr=0.5, where="kind = 7", columns=("made",))
    assert [list(hit.columns) for hit in filtered] == [["made"]] * 3
    assert ask(conninfo, reports, limit=20, mmr=1.0) == nearest


def test_batches_that_the_memory_does_not_hold_are_halved(
    reranker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cross_encoder(str(reranker), "cpu")
    texts = [f"text {number}" for number in range(40)]
    usual = model.scores(WORDS, texts)
    tried: list[int] = []
    predict = model._model.predict

    def small_memory(pairs: Any, *, batch_size: int, **options: Any) -> Any:
        tried.append(batch_size)
        if batch_size > 4:
            raise RuntimeError("MPS backend out of memory")
        return predict(pairs, batch_size=batch_size, **options)

    monkeypatch.setattr(model._model, "predict", small_memory)
    np.testing.assert_allclose(model.scores(WORDS, texts), usual, rtol=1e-4)
    assert len(tried) > 1
    assert tried[-1] <= 4 < tried[-2]
    monkeypatch.setattr(model._model, "predict", lambda *_, **__: 1 / 0)
    with pytest.raises(ModelError, match=r"fails on pairs of .* tokens on cpu: division by zero"):
        model.scores(WORDS, texts)


def test_what_cannot_order_is_said_in_one_line(
    conninfo: str, reports: Pipeline, reranker: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    from tests.support.models import make_tiny_model

    embedding = make_tiny_model(tmp_path / "embedding")
    classifier = save_reranker(tmp_path / "classifier", labels=3)
    headless = save_reranker(tmp_path / "headless")
    weights = load_file(headless / "model.safetensors")
    kept = {name: each for name, each in weights.items() if not name.startswith("classifier")}
    save_file(kept, headless / "model.safetensors", {"format": "pt"})
    for options, words in (
        (("--rerank", str(embedding)), "is an embedding model, and no cross-encoder"),
        (("--rerank", str(classifier)), "has 3 scores for a pair of texts"),
        (("--rerank", str(headless)), "lacks weights of BertForSequenceClassification"),
        (("--rerank", str(tmp_path / "none")), "there is no model folder"),
        (("--rerank", str(reranker), "--device", "tpu"), "unknown device 'tpu'"),
        (("--device", "tpu"), "unknown device 'tpu'"),
        (("--rerank-top", "0"), "--rerank-top 0: give how many hits to order anew, 1 to 1,000"),
        (("--mmr", "7"), "--mmr 7: give a number from 0 to 1"),
        (("--mmr", "nan"), "--mmr nan: give a number from 0 to 1"),
    ):
        ran = pgembed(conninfo, "search", "reports", WORDS, *options)
        assert words in (ran.error or ""), options
