"""Lower precisions: what they cannot compute, and chunks on which they are wrong."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgqueue_embed.chunking import Chunk, Chunker
from pgqueue_embed.claim.embed import embed_records
from pgqueue_embed.embedding import (
    DeviceThread,
    EmbeddingModel,
    NonFiniteVectors,
    VectorCache,
    precision,
    resolve_model,
)
from pgqueue_embed.embedding.canary_check import CanaryCheck
from pgqueue_embed.embedding.precision import BF16
from pgqueue_embed.embedding.rows import WrongVectors, lowest_cosine
from pgqueue_embed.errors import ModelError
from pgqueue_embed.ledger.verdicts import Found
from pgqueue_embed.source.read import SourceRecord
from tests.support import zoo
from tests.support.libraries import load_file, save_file, torch
from tests.support.opened_models import chunks_of, load
from tests.support.variants import found_fastest
from tests.support.zoo import WIDTH, Animal
from tests.support.zoo_tokenizers import BERT

SAME = 0.99999


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    animal = Animal(architecture="Bert", tokenizer="wordpiece", specials=BERT)
    return animal.save(tmp_path_factory.mktemp("bert") / "model")


def test_rows_that_overflow_in_half_precision_are_computed_in_fp32(tmp_path: Path) -> None:
    folder = zoo.static_model(tmp_path / "model")
    exact = load(folder)
    (file,) = folder.rglob("model.safetensors")
    ((name, weights),) = load_file(file).items()
    weights[exact.tokenizer.token_to_id("title")] *= 1e5  # beyond 65,504, the largest of fp16
    save_file({name: weights}, file, metadata={"format": "pt"})
    exact, half = load(folder), load(folder, precision="fp16")
    chunks = chunks_of(half, "The pump stopped.", "a title", "nobody was hurt")
    assert lowest_cosine(half.forward(chunks), exact.forward(chunks)) >= 0.999
    assert half.chunks_in_fp32 == 1
    half.forward([*chunks, chunks[1], chunks[1]])
    assert half.chunks_in_fp32 == 2


def test_a_model_tells_the_lowest_cosine_of_its_canaries(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CanaryCheck, "agreement", lambda *_: 0.9998)
    exact = EmbeddingModel.reference(resolve_model(str(folder)))
    assert exact.canary_cosine == 1.0, "what others are compared with"
    half = load(folder, precision="fp16")
    assert half.canary_cosine == 0.9998
    for cosine, lowest in ((0.9993, 0.9993), (0.9996, 0.9993)):
        monkeypatch.setattr(CanaryCheck, "agreement_in", lambda *_, cosine=cosine: cosine)
        half.verify(1, 16)
        assert half.canary_cosine == lowest


def test_a_device_tells_which_call_was_computed_in_fp32(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(folder, precision="bf16")
    good, bad, lost = chunks_of(model, "The pump stopped.", "a title", "nobody was hurt")
    compute, in_fp32 = model._compute, model._in_fp32

    def overflowing(reader: Any, chunks: list[Chunk], *rest: Any, **options: Any) -> Any:
        raw = compute(reader, chunks, *rest, **options)
        halved = torch.is_autocast_enabled("cpu")
        raw[[chunk is lost or (halved and chunk is bad) for chunk in chunks]] = torch.nan
        return raw

    monkeypatch.setattr(model, "_compute", overflowing)
    with closing(DeviceThread(lambda: model)) as device:
        assert device.embed([good]).fp32_chunks == 0
        assert device.embed([good, bad, bad]).fp32_chunks == 1
        with pytest.raises(
            NonFiniteVectors, match=r"in bf16, nor again in fp32, for row \(1,"
        ) as no:
            device.embed([good, lost])
        assert no.value.rows == (1,)
    assert model.chunks_in_fp32 == 1
    assert in_fp32([bad]).shape == (1, WIDTH)


def test_a_claim_counts_what_was_computed_in_fp32_beside_a_record_that_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(folder, precision="bf16")
    compute = model._compute

    def overflowing(reader: Any, chunks: list[Chunk], *rest: Any, **options: Any) -> Any:
        raw = compute(reader, chunks, *rest, **options)
        halved = torch.is_autocast_enabled("cpu")
        raw[["alarm" in each.text or (halved and "title" in each.text) for each in chunks]] = (
            torch.nan
        )
        return raw

    monkeypatch.setattr(model, "_compute", overflowing)
    texts = ("The pump stopped.", "a title", "an alarm rang", "another title", "nobody was hurt")
    chunker = Chunker(model.tokenizer, max_tokens=20, overlap_tokens=0)
    with closing(DeviceThread(lambda: model)) as device:
        for again in (False, True):
            found = embed_records(
                [(record(text), again) for text in texts],
                chunker=chunker,
                embedder=device,
                verify=lambda: None,
                on_progress=lambda: None,
            )
            assert [each.key for each in found.findings if each.found is Found.FAILED] == [texts[2]]
            assert found.fp32_chunks == 2
            assert found.device_seconds > 0
            device.cache = VectorCache(device.cache.max_bytes)


def record(text: str) -> SourceRecord:
    """Return a record whose key is its text."""
    return SourceRecord(
        key=text,
        document=text,
        document_hash=text.encode(),
        unchanged=False,
        has_vectors=False,
        beyond_limit=False,
    )


@pytest.fixture
def rounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., EmbeddingModel]:
    """Return what loads a model whose bf16 is wrong for one text that is no canary."""

    def opened(precision: str) -> EmbeddingModel:
        found_fastest(monkeypatch, BF16)
        model = load(folder, precision=precision)
        compute = model._compute

        def rounding(reader: Any, chunks: list[Chunk], *rest: Any, **options: Any) -> Any:
            raw = compute(reader, chunks, *rest, **options)
            if torch.is_autocast_enabled("cpu"):
                for row, chunk in enumerate(chunks):
                    raw[row, 0] += 5 * ("title" in chunk.text) * raw[row].abs().max()
            return raw

        monkeypatch.setattr(model, "_compute", rounding)
        model.sample_batches()
        return model

    return opened


def test_a_precision_that_fails_real_chunks_is_given_up(
    rounded: Callable[..., EmbeddingModel], folder: Path
) -> None:
    model = rounded("auto")
    assert model.precision == "bf16"
    chunks = chunks_of(model, "The pump stopped.", "a title", "nobody was hurt")
    with closing(DeviceThread(lambda: model)) as device:
        found = np.concatenate([device.embed([each]).vectors for each in chunks])
    assert model.precision == "fp32"
    assert lowest_cosine(found[1:], load(folder).forward(chunks[1:])) >= SAME


def test_a_precision_that_was_asked_for_and_fails_real_chunks_stops_the_device(
    rounded: Callable[..., EmbeddingModel],
) -> None:
    model = rounded("bf16")
    (chunk,) = chunks_of(model, "a title")
    with closing(DeviceThread(lambda: model)) as device:
        for _ in range(2):
            with pytest.raises(WrongVectors, match=r"chunk of yours; give --precision fp32"):
                device.embed([chunk])
    assert model.precision == "bf16"


def test_only_the_first_batches_are_sampled(
    rounded: Callable[..., EmbeddingModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = rounded("bf16")
    model.sample_batches(2)
    asked: list[str] = []
    in_fp32 = model._in_fp32

    def counted(chunks: list[Chunk]) -> Any:
        asked.extend(chunk.text for chunk in chunks)
        return in_fp32(chunks)

    monkeypatch.setattr(model, "_in_fp32", counted)
    long, short, other = chunks_of(model, "The pump stopped.", "pump", "nobody was hurt")
    for batch in ([long, short], [other], [long]):
        model.forward(batch)
    assert asked == [short.text, other.text]


def test_a_refused_precision_on_a_cpu_does_not_advise_the_cpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "LOWEST_COSINE", 2.0)
    with pytest.raises(ModelError, match="use another --precision"):
        load(folder, precision="bf16")
