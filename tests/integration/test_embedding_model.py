"""The real bundled model: the vectors of sentence-transformers, and nothing cut off."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from pgqueue_embed.chunking import Chunk, Chunker
from pgqueue_embed.embedding import (
    DeviceThread,
    EmbeddingModel,
    fingerprint,
    precision,
    resolve_model,
)
from pgqueue_embed.embedding.precision import FP16_WEIGHTS
from pgqueue_embed.embedding.rows import WrongVectors, lowest_cosine, unit_rows
from pgqueue_embed.errors import ModelError, RecordFault, UsageError
from tests.support.libraries import SentenceTransformer, StaticEmbedding
from tests.support.models import bundled_model, make_tiny_model
from tests.support.opened_models import is_light
from tests.support.variants import found_fastest

DOCUMENTS = [
    "The infusion pump's alarm was silenced; nobody was hurt. " * 30,
    "Short.",
    "设备在使用过程中突然停止工作，护士立即更换了备用设备。" * 20,
    "A literal [SEP] and [CLS] in a report, 🙂 and a tail." * 3,
]


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    return bundled_model()


@pytest.fixture(scope="module")
def reference() -> SentenceTransformer:
    path = resolve_model("all-MiniLM-L6-v2").path
    return SentenceTransformer(str(path), device="cpu", local_files_only=True)


def chunks_of(model: EmbeddingModel, documents: list[str], max_tokens: int = 128) -> list[Chunk]:

    chunker = Chunker(model.tokenizer, max_tokens=max_tokens, overlap_tokens=20)
    return [chunk for document in chunker.chunk(documents) for chunk in document.chunks]


def test_the_model_knows_itself(model: EmbeddingModel) -> None:
    assert (model.device, model.precision, model.notes) == ("cpu", "fp32", ())
    assert (model.dimensions, model.max_sequence_tokens, model.content_budget) == (384, 256, 254)
    facts = model.facts
    assert (facts.document_prompt, facts.query_prompt, facts.feeding) == ("", "", "ids")
    assert (facts.pooling, facts.similarity, facts.is_unit_length) == ("mean", "cosine", True)
    assert facts.lowest_cosine is None
    assert model.fingerprint.files["model.safetensors"].startswith("53aa5117")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the bundled one's tokenizer and settings, and a small network."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def test_the_library_is_asked_where_that_is_wanted(tiny: Path) -> None:
    loaded = EmbeddingModel.load(resolve_model(str(tiny)), device="cpu", compare=True)
    assert is_light(loaded)
    assert loaded.facts.lowest_cosine is not None
    assert loaded.facts.lowest_cosine > 0.99999


def test_vectors_equal_those_of_encode(
    model: EmbeddingModel, reference: SentenceTransformer
) -> None:
    chunks = [c for c in chunks_of(model, DOCUMENTS) if "[SEP]" not in c.text]
    vectors = model.forward(chunks)
    expected = reference.encode([chunk.text for chunk in chunks], show_progress_bar=False)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert lowest_cosine(vectors, unit_rows(expected)) >= 0.9999
    longer = model.forward(chunks, length=200)
    assert lowest_cosine(longer, vectors) >= 0.9999


def test_a_full_batch_without_a_mask_has_the_same_vectors(
    model: EmbeddingModel, reference: SentenceTransformer
) -> None:
    (chunk,) = chunks_of(model, ["one two three four five"])
    expected = reference.encode([chunk.text], show_progress_bar=False)
    assert lowest_cosine(model.forward([chunk, chunk]), unit_rows(expected.repeat(2, 0))) > 0.9999


def test_literal_control_tokens_are_read_as_text(model: EmbeddingModel) -> None:
    chunks = chunks_of(model, ["pump [SEP] failed"])

    ids = model.tokenizer.encode("pump [SEP] failed").ids
    assert tuple(ids) == (101, *chunks[0].token_ids, 102)
    assert model.forward(chunks)[0] @ model.encode_query("pump [SEP] failed") > 0.9999


def test_a_query_finds_the_chunk_it_is_about(model: EmbeddingModel) -> None:
    vectors = model.forward(chunks_of(model, ["The pump stopped.", "A cake with sugar."]))
    scores = vectors @ model.encode_query("device failure")
    assert scores[0] > scores[1]


def test_nothing_is_cut_off_silently(model: EmbeddingModel) -> None:
    chunk = chunks_of(model, ["word " * 250], max_tokens=254)[0]
    too_long = Chunk(
        index=0, start=0, end=1, text=chunk.text * 2, token_ids=np.tile(chunk.token_ids, 2)
    )
    with pytest.raises(RecordFault, match="nothing is cut off"):
        model.forward([too_long])
    with pytest.raises(UsageError, match="tokens"):
        model.encode_query("word " * 300)


def test_wrong_numbers_are_noticed_per_shape(
    model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.verify(8, 64)
    right = model._compute
    monkeypatch.setattr(model, "_compute", lambda *args: right(*args).flip(1))
    with pytest.raises(WrongVectors, match="8 x 64 tokens"):
        model.verify(8, 64)


def test_auto_precision_falls_back_to_fp32_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    resolved = resolve_model(str(tiny))
    found_fastest(monkeypatch, FP16_WEIGHTS)
    monkeypatch.setattr(precision, "LOWEST_COSINE", 1.0)
    loaded = EmbeddingModel.load(resolved, device="cpu")
    assert loaded.precision == "fp32"
    assert len(loaded.notes) == 1
    assert "fp16 weights on cpu does not agree with fp32" in loaded.notes[0]
    chunks = loaded.sample_chunks(64)
    exact = EmbeddingModel.reference(resolved)
    assert np.array_equal(loaded.forward(chunks), exact.forward(chunks))


def test_the_device_thread_gives_the_models_vectors(model: EmbeddingModel) -> None:
    chunks = chunks_of(model, DOCUMENTS, max_tokens=64)
    thread = DeviceThread(lambda: model)
    try:
        result = thread.embed(chunks)
    finally:
        thread.close()
    assert lowest_cosine(result.vectors, model.forward(chunks)) >= 0.9999
    assert result.device_seconds > 0


@pytest.fixture
def copied(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "some where" / "model"))


def test_copies_have_one_fingerprint_until_a_byte_changes(tiny: Path, copied: Path) -> None:
    whole = fingerprint(tiny)
    assert fingerprint(copied) == whole
    with (copied / "model.safetensors").open("r+b") as weights:
        weights.seek(-1, os.SEEK_END)
        last = weights.read(1)
        weights.seek(-1, os.SEEK_END)
        weights.write(bytes([last[0] ^ 1]))
    assert fingerprint(copied).difference(whole) == ["model.safetensors"]


def test_a_model_with_pickled_weights_only_is_refused(copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin"):
        resolve_model(str(copied))


def test_damaged_weights_are_one_line(copied: Path) -> None:
    (copied / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        EmbeddingModel.load(resolve_model(str(copied)), device="cpu")
    assert "\n" not in str(caught.value)


def test_prompts_are_part_of_the_input_and_of_the_budget(copied: Path) -> None:
    config = '{"prompts": {"passage": "passage: ", "query": "query: "}}'
    (copied / "config_sentence_transformers.json").write_text(config)
    loaded = EmbeddingModel.load(resolve_model(str(copied)), device="cpu")
    facts = loaded.facts
    assert (facts.document_prompt, facts.query_prompt) == ("passage: ", "query: ")
    assert facts.feeding == "ids"
    assert loaded.content_budget == 252
    chunks = chunks_of(loaded, ["The pump stopped."])
    reference = SentenceTransformer(str(copied), device="cpu", local_files_only=True)
    expected = reference.encode(["passage: The pump stopped."], show_progress_bar=False)
    assert lowest_cosine(loaded.forward(chunks), unit_rows(expected)) > 0.9999
    query = reference.encode(["query: pump"], show_progress_bar=False)
    assert loaded.encode_query("pump") @ unit_rows(query)[0] > 0.9999


@pytest.fixture
def static_model(tmp_path: Path) -> Path:
    file = resolve_model("all-MiniLM-L6-v2").path / "tokenizer.json"
    weights = np.random.default_rng(0).normal(size=(30522, 64)).astype(np.float32)
    module = StaticEmbedding(Tokenizer.from_file(str(file)), embedding_weights=weights)
    SentenceTransformer(modules=[module], device="cpu").save_pretrained(
        str(tmp_path / "static"), create_model_card=False
    )
    return tmp_path / "static"


def test_a_static_model_looks_up_the_ids_of_chunks(static_model: Path) -> None:
    loaded = EmbeddingModel.load(resolve_model(str(static_model)))
    assert (loaded.device, loaded.precision, loaded.is_transformer) == ("cpu", "fp32", False)
    assert loaded.dimensions == 64
    # MiniLM's tokenizer file says so, and the library cuts what is longer.
    assert loaded.content_budget == 128
    chunks = chunks_of(loaded, DOCUMENTS[:3])
    reference = SentenceTransformer(str(static_model), device="cpu", local_files_only=True)
    expected = reference.encode([chunk.text for chunk in chunks], show_progress_bar=False)
    assert lowest_cosine(loaded.forward(chunks), unit_rows(expected)) > 0.9999
    assert loaded.encode_query("pump").shape == (64,)


# The hub's own client would try for more than a minute; what is imported does not count.
NO_NETWORK = """
import sys, time
from huggingface_hub import get_session, try_to_load_from_cache
from pgqueue_embed.embedding import resolve_model
from pgqueue_embed.errors import ModelError
started = time.monotonic()
try:
    resolve_model("someone/some-model")
except ModelError as error:
    print(error)
sys.exit(time.monotonic() - started > 30)
"""


@pytest.fixture
def silent_endpoint() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["refused", "silent"])
def test_a_hub_name_without_a_network_fails_fast_in_one_line(
    tmp_path: Path, silent_endpoint: str, kind: str
) -> None:
    endpoint = {"refused": "http://127.0.0.1:9", "silent": silent_endpoint}[kind]
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment |= {"HF_HOME": str(tmp_path), "HF_ENDPOINT": endpoint}
    done = subprocess.run(
        [sys.executable, "-c", NO_NETWORK], env=environment, capture_output=True, text=True
    )
    assert "someone/some-model is not on this machine" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
    assert done.returncode == 0, "it waits for no longer"
