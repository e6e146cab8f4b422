"""Models that sentence-transformers reads in a way of their own, and those that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pgqueue_embed.embedding import ModelUse, refuse_unsuited, resolve_model
from pgqueue_embed.embedding.rows import lowest_cosine, unit_rows
from pgqueue_embed.errors import ModelError, UsageError
from tests.support import zoo
from tests.support.libraries import (
    Normalize,
    Pooling,
    SentenceTransformer,
    Transformer,
    WhitespaceTokenizer,
    WordEmbeddings,
    load_file,
    save_file,
    torch,
    transformers,
)
from tests.support.opened_models import chunks_of, load
from tests.support.plain_model import PLAIN, SAME, assert_like_the_library, change, change_weights
from tests.support.zoo import LIMIT, WIDTH, ZOO, Animal
from tests.support.zoo_tokenizers import ROBERTA


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A plain model, to be changed."""
    return PLAIN.save(tmp_path / "model")


# Weights


def test_a_missing_layer_is_refused(folder: Path) -> None:
    change(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"lacks weights of BertModel: encoder\.layer\.2"):
        load(folder)


def test_a_layer_too_many_is_refused(folder: Path) -> None:
    change(folder / "config.json", num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"no place for the weight encoder\.layer\.1"):
        load(folder)


def test_weights_of_another_architecture_are_refused(folder: Path) -> None:
    change_weights(folder, lambda name: name.replace("intermediate.dense", "mlp.gated_layers"))
    with pytest.raises(ModelError, match=r"no place for the weight encoder.*mlp\.gated_layers"):
        load(folder)


def test_a_pooler_that_no_vector_depends_on_may_be_missing(folder: Path) -> None:
    change_weights(folder, lambda name: None if "pooler" in name else name)
    assert_like_the_library(load(folder), folder, "The pump stopped.")


def test_weights_of_another_head_have_no_part(folder: Path) -> None:
    file = folder / "model.safetensors"
    save_file(load_file(file) | {"cls.predictions.bias": torch.ones(3)}, file, {"format": "pt"})
    assert_like_the_library(load(folder), folder, "The pump stopped.")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_models_own_is_refused(folder: Path, file: str) -> None:
    names = {"AutoModel": "x--y.JinaBertModel", "AutoTokenizer": ["x--y.OwnTokenizer", None]}
    change(folder / file, auto_map=names)
    with pytest.raises(ModelError, match="code of its own"):
        resolve_model(str(folder))


def test_code_that_transformers_took_over_is_not_missed(folder: Path) -> None:
    change(folder / "config.json", auto_map={"AutoModel": "x--y.NomicBertModel"})
    assert resolve_model(str(folder)).path == folder


# Kinds


@pytest.mark.parametrize("kind", ["CrossEncoder", "SparseEncoder", "MultiVectorEncoder"])
def test_other_kinds_of_models_are_refused_by_name(folder: Path, kind: str) -> None:
    change(folder / "config_sentence_transformers.json", model_type=kind)
    with pytest.raises(ModelError, match="one vector for each chunk"):
        resolve_model(str(folder))


def test_a_reranker_without_modules_is_refused(tmp_path: Path) -> None:
    PLAIN.save_base(tmp_path)
    config = transformers.BertConfig.from_pretrained(tmp_path, num_labels=1)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cross-encoder"):
        resolve_model(str(tmp_path))


def test_splade_is_refused_by_its_modules(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "sentence_transformers.sparse_encoder.models.SpladePooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match="SPLADE"):
        resolve_model(str(folder))


def test_colbert_is_refused_by_its_modules(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "pylate.models.Dense.Dense"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match="ColBERT"):
        resolve_model(str(folder))


def test_a_bare_transformer_is_no_model_for_a_new_pipeline(tmp_path: Path) -> None:
    PLAIN.save_base(tmp_path)
    with pytest.raises(ModelError, match="bare transformer"):
        refuse_unsuited(load(tmp_path).facts)


def test_a_pooling_that_is_said_makes_a_bare_transformer_a_model(tmp_path: Path) -> None:
    PLAIN.save_base(tmp_path)
    for mode in ("cls", "mean"):
        model = load(tmp_path, use=ModelUse(pooling=mode))
        refuse_unsuited(model.facts)
        assert model.facts.pooling == mode
        modules = [Transformer(str(tmp_path)), Pooling(WIDTH, mode)]
        (chunk,) = chunks_of(model, "The pump stopped.")
        wanted = SentenceTransformer(modules=modules, device="cpu").encode([chunk.text])
        assert lowest_cosine(model.forward([chunk]), unit_rows(wanted)) >= SAME


def test_a_pooling_where_the_files_name_one_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"--pooling cls: .* say themselves"):
        load(folder, use=ModelUse(pooling="cls"))


def test_a_table_of_whole_words_is_refused_by_name(tmp_path: Path) -> None:
    words = WhitespaceTokenizer(vocab=["pump", "stopped"])
    table = WordEmbeddings(words, np.ones((2, WIDTH), np.float32))
    SentenceTransformer(modules=[table, Pooling(WIDTH, "mean")], device="cpu").save_pretrained(
        str(tmp_path / "model"), create_model_card=False
    )
    with pytest.raises(ModelError, match="begins with WordEmbeddings"):
        load(tmp_path / "model")


def test_a_model_without_a_fast_tokenizer_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "base"
    transformers.ByT5Tokenizer().save_pretrained(base)
    sizes = {"d_model": WIDTH, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2}
    transformers.T5EncoderModel(transformers.T5Config(vocab_size=384, **sizes)).save_pretrained(
        base
    )
    modules = [Transformer(str(base)), Pooling(WIDTH, "mean")]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(
        str(tmp_path / "model"), create_model_card=False
    )
    with pytest.raises(ModelError, match="no fast tokenizer"):
        load(tmp_path / "model")


def test_a_model_without_a_padding_token_is_refused(tmp_path: Path) -> None:
    folder = ZOO["gpt2"].save(tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="padding token"):
        load(folder)


# Similarity


@pytest.mark.parametrize("similarity", ["dot", "euclidean", "manhattan"])
def test_a_similarity_with_another_order_is_refused(folder: Path, similarity: str) -> None:
    change(folder / "config_sentence_transformers.json", similarity_fn_name=similarity)
    facts = load(folder).facts
    assert (facts.similarity, facts.is_unit_length) == (similarity, False)
    with pytest.raises(ModelError, match=f"made for {similarity} similarity"):
        refuse_unsuited(facts)


def test_dot_of_vectors_of_length_one_is_their_cosine(tmp_path: Path) -> None:
    first = PLAIN.modules(tmp_path / "base")
    network = SentenceTransformer(modules=[*first, Normalize()], device="cpu")
    network.similarity_fn_name = "dot"
    network.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    refuse_unsuited(load(tmp_path / "model").facts)


# Limits


def test_positions_count_from_behind_the_padding_of_roberta(tmp_path: Path) -> None:
    model = load(ZOO["roberta"].save(tmp_path / "model"))
    assert model.max_sequence_tokens == 128
    model.try_chunk_of(model.content_budget)
    model._documents.max_tokens = 130
    with pytest.raises(ModelError, match="fails on a sequence of 130 tokens"):
        model.try_chunk_of(1000)


def test_the_document_length_of_a_module_is_its_limit(folder: Path) -> None:
    change(folder / "sentence_bert_config.json", document_length=40, query_length=20)
    facts = load(folder).facts
    assert (facts.document_tokens, facts.query_tokens) == (40, 20)


def test_the_length_that_a_processor_is_told_is_the_limit(folder: Path) -> None:
    settings = {"text": {"max_length": 33, "truncation": True}}
    change(folder / "sentence_bert_config.json", processing_kwargs=settings)
    model = load(folder)
    assert model.max_sequence_tokens == 33
    assert_like_the_library(model, folder, "word " * 60)


def test_documents_of_a_router_have_the_limit_of_their_own_route(tmp_path: Path) -> None:
    table = SentenceTransformer(str(zoo.static_model(tmp_path / "table")), device="cpu")
    document = Animal(architecture="Roberta", tokenizer="byte-bpe", specials=ROBERTA)
    folder = zoo.router_model(
        tmp_path / "model",
        query=[table[0]],
        document=document.modules(tmp_path / "document"),
    )
    model = load(folder)
    assert model.facts.routes
    assert model.is_transformer
    assert model.max_sequence_tokens == LIMIT
    endings = [f"{'pump ' * 90}{ending}" for ending in ("stopped", "failed", "broke")]
    last = [chunks_of(model, text)[-1] for text in endings]
    vectors = model.forward(last)
    assert vectors[0] @ vectors[1] < 0.9999
    assert_like_the_library(model, folder, *endings)
