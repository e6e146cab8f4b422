"""Models that sentence-transformers reads in a way of their own, and those that are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgqueue_embed.chunking import Chunker
from pgqueue_embed.embedding import (
    EmbeddingModel,
    ModelFacts,
    ModelUse,
    missing_prompts,
    refuse_unsuited,
    resolve_model,
)
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
from tests.support.zoo import BERT, LIMIT, ROBERTA, WIDTH, ZOO, Animal

SAME = 0.99999
PLAIN = Animal(architecture="Bert", tokenizer="wordpiece", specials=BERT)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return PLAIN.save(tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture(scope="module")
def bert_facts(bert: Path) -> ModelFacts:
    return load(bert).facts


@pytest.fixture
def folder(bert: Path, tmp_path: Path) -> Path:
    """A copy of a plain model, to be changed."""
    return Path(shutil.copytree(bert, tmp_path / "model"))


def change(file: Path, **values: Any) -> None:
    settings = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(settings | values))


def change_weights(folder: Path, rename: Callable[[str], str | None]) -> None:
    """Rename the weights of a folder; those called None are lost."""
    file = folder / "model.safetensors"
    renamed = {rename(name): tensor for name, tensor in load_file(file).items()}
    weights = {name: tensor for name, tensor in renamed.items() if name is not None}
    save_file(weights, file, metadata={"format": "pt"})


def assert_like_the_library(model: EmbeddingModel, folder: Path, *texts: str) -> None:
    reference = SentenceTransformer(
        str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
    )
    chunks = chunks_of(model, *texts)
    wanted = [reference.encode_document(each.text, show_progress_bar=False) for each in chunks]
    assert lowest_cosine(model.forward(chunks), unit_rows(np.stack(wanted))) >= SAME
    for text in filter(model._queries.fits, texts):
        wanted = reference.encode_query(text, show_progress_bar=False)
        assert lowest_cosine(model.encode_query(text)[None], unit_rows(wanted[None])) >= SAME


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


# Tokens


def test_added_tokens_that_are_not_special_keep_their_ids(tmp_path: Path) -> None:
    folder = ZOO["qwen3"].save(tmp_path / "model")
    assert_like_the_library(
        load(folder), folder, "<think>the pump stopped</think>", "<tool_call>pump"
    )


def test_prompt_and_text_that_merge_are_read_together(tmp_path: Path) -> None:
    folder = ZOO["roberta-joining-prompt"].save(tmp_path / "model")
    assert_like_the_library(load(folder), folder, "(a) the pump", "(( pump", "pump")


CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
)


def test_a_chat_template_is_fed_as_the_library_does(tmp_path: Path) -> None:
    animal = ZOO["qwen3"]
    animal.save_base(tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text(CHAT)
    first = Transformer(str(tmp_path / "base"))
    assert "message" in first.modalities
    network = SentenceTransformer(modules=[first, Pooling(WIDTH, "lasttoken")], device="cpu")
    network.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    model = load(tmp_path / "model")
    assert model.content_budget < LIMIT - 10
    assert_like_the_library(model, tmp_path / "model", "The pump stopped. " * 20, "(a) the pump")


def test_control_tokens_may_be_meant(tmp_path: Path) -> None:
    folder = ZOO["deberta"].save(tmp_path / "model")
    reference = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    text = "title[SEP]abstract"
    wanted = unit_rows(reference.encode_document([text], show_progress_bar=False))
    obeying = load(folder, use=ModelUse(control_tokens=True))
    plain = load(folder)
    for model, same in ((obeying, True), (plain, False)):
        (chunk,) = chunks_of(model, text, control_tokens=same)
        assert (lowest_cosine(model.forward([chunk]), wanted) >= SAME) == same
        assert (lowest_cosine(model.encode_query(text)[None], wanted) >= SAME) == same


@pytest.mark.parametrize("name", ["xlm-r-metaspace", "xlm-r-collapsing"])
def test_zero_width_characters_at_edges_stay_within_the_budget(tmp_path: Path, name: str) -> None:
    model = load(ZOO[name].save(tmp_path / "model"))
    chunks = chunks_of(model, "pump\u200b " * 700)
    assert len(chunks) > 5
    for chunk in chunks:
        assert chunk.token_ids.tolist() == model._documents.ids_of(chunk.text).tolist()
    assert len(model.forward(chunks)) == len(chunks)


@pytest.mark.parametrize("unit", ["pump\u200b ", "\u200bpump ", "pump\u2060 ", "pump\ufeff\n"])
def test_ids_at_edges_that_are_read_as_spaces_are_those_of_the_chunk(unit: str) -> None:
    """Slices keep the ids of their document, as canaries say, but at some edges they do not."""
    tokenizer = zoo.metaspace_of_whole_words()
    chunker = Chunker(tokenizer, max_tokens=126, overlap_tokens=20)
    assert chunker.reuses_ids
    (document,) = chunker.chunk([unit * 700])
    for chunk in document.chunks:
        own = tokenizer.encode(chunk.text, add_special_tokens=False).ids
        assert chunk.token_ids.tolist() == own
        assert len(own) <= 126


# Prompts


def test_a_default_prompt_is_not_that_of_documents(folder: Path) -> None:
    change(
        folder / "config_sentence_transformers.json",
        prompts={"query": "query: "},
        default_prompt_name="query",
    )
    model = load(folder)
    assert (model.facts.document_prompt, model.facts.query_prompt) == ("", "query: ")
    assert_like_the_library(model, folder, "The pump stopped.")


def test_a_passage_prompt_is_that_of_documents(folder: Path) -> None:
    """The library overlooks it behind a placeholder of its own."""
    prompts = {"query": "query: ", "passage": "passage: "}
    change(folder / "config_sentence_transformers.json", prompts=prompts)
    model = load(folder)
    facts = model.facts
    assert (facts.document_prompt, facts.query_prompt) == ("passage: ", "query: ")
    (note,) = model.notes
    assert "each document gets the prompt 'passage: '" in note
    assert load(folder, use=ModelUse(document_prompt="passage: ")).notes == ()


def test_prompts_may_be_given(folder: Path) -> None:
    model = load(folder, use=ModelUse(document_prompt="passage: ", query_prompt="query: "))
    reference = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    (chunk,) = chunks_of(model, "The pump stopped.")
    wanted = reference.encode([f"passage: {chunk.text}"], show_progress_bar=False)
    assert lowest_cosine(model.forward([chunk]), unit_rows(wanted)) >= SAME
    wanted = reference.encode(["query: pump"], show_progress_bar=False)
    assert lowest_cosine(model.encode_query("pump")[None], unit_rows(wanted)) >= SAME


@pytest.mark.parametrize(
    ("name", "query", "document"),
    [
        ("intfloat/multilingual-e5-small", "query: ", "passage: "),
        ("/models/e5-base-v2", "query: ", "passage: "),
        ("nomic-ai/nomic-embed-text-v1.5", "search_query: ", "search_document: "),
        ("BAAI/bge-small-en-v1.5", "Represent this sentence", None),
        ("Qwen/Qwen3-Embedding-0.6B", "Instruct: ", None),
        ("google/embeddinggemma-300m", "task: search result", "title: none"),
        ("mixedbread-ai/mxbai-embed-large-v1", "Represent this sentence", None),
        ("Snowflake/snowflake-arctic-embed-m-v2.0", "query: ", None),
        ("Snowflake/snowflake-arctic-embed-m", "Represent this sentence", None),
    ],
)
def test_prompts_that_a_family_was_trained_with_are_missed(
    bert_facts: ModelFacts, name: str, query: str, document: str | None
) -> None:
    facts = replace(bert_facts, name=name)
    said = missing_prompts(facts)
    assert said is not None
    assert query in said
    assert ("--document-prompt" in said) == (document is not None)
    assert document is None or document in said
    assert "--query-prompt '" in said
    given = replace(facts, document_prompt="passage: ", query_prompt="query: ")
    assert missing_prompts(given) is None
    assert missing_prompts(facts, ModelUse(document_prompt="", query_prompt="")) is None


@pytest.mark.parametrize("name", ["BAAI/bge-m3", "sentence-transformers/all-MiniLM-L6-v2"])
def test_no_prompt_is_missed_where_a_family_has_none(bert_facts: ModelFacts, name: str) -> None:
    assert missing_prompts(replace(bert_facts, name=name)) is None


# Files


def test_a_saved_truncation_is_that_of_the_vectors(folder: Path) -> None:
    change(folder / "config_sentence_transformers.json", truncate_dim=12)
    model = load(folder)
    assert model.dimensions == 12
    assert_like_the_library(model, folder, "The pump stopped.")


def test_a_table_whose_only_module_is_the_folder_itself(tmp_path: Path) -> None:
    folder = zoo.static_model(tmp_path / "model")
    (modules,) = [json.loads((folder / "modules.json").read_text())]
    inner = folder / modules[0]["path"]
    if inner != folder:
        for file in inner.iterdir():
            file.rename(folder / file.name)
    (folder / "modules.json").write_text(json.dumps([modules[0] | {"path": "."}]))
    assert_like_the_library(load(folder), folder, "The pump stopped.")


def test_everything_about_an_adapter_is_in_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    from pgqueue_embed.embedding import Fingerprint, fingerprint

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    change(adapter / "adapter_config.json", base_model_name_or_path=str(folder), lora_alpha=8)
    first = fingerprint(adapter)
    change(adapter / "adapter_config.json", lora_alpha=16)
    second = fingerprint(adapter)
    assert second.difference(first) == ["adapter_config.json"]
    change_weights(folder, lambda name: name.replace("pooler", "other"))
    assert fingerprint(adapter).difference(second) == ["base/model.safetensors"]
    kept = {"adapter_model.safetensors": first.files["adapter_model.safetensors"]}
    assert first.continues(Fingerprint(digest="earlier", files=kept))
    assert not second.continues(first)
    change(adapter / "adapter_config.json", base_model_name_or_path="nobody/nothing")
    with pytest.raises(ModelError, match="adapter for nobody/nothing"):
        fingerprint(adapter)
