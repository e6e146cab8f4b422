"""Tokens, prompts and files that sentence-transformers reads in a way of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pgqueue_embed.chunking import Chunker
from pgqueue_embed.embedding import ModelFacts, ModelUse, missing_prompts
from pgqueue_embed.embedding.rows import lowest_cosine, unit_rows
from pgqueue_embed.errors import ModelError
from tests.support import zoo
from tests.support.libraries import Pooling, SentenceTransformer, Transformer
from tests.support.opened_models import chunks_of, load
from tests.support.plain_model import PLAIN, SAME, assert_like_the_library, change, change_weights
from tests.support.zoo import LIMIT, WIDTH, ZOO
from tests.support.zoo_tokenizers import metaspace_of_whole_words


@pytest.fixture(scope="module")
def bert_facts(tmp_path_factory: pytest.TempPathFactory) -> ModelFacts:
    return load(PLAIN.save(tmp_path_factory.mktemp("bert") / "model")).facts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A plain model, to be changed."""
    return PLAIN.save(tmp_path / "model")


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
    tokenizer = metaspace_of_whole_words()
    chunker = Chunker(tokenizer, max_tokens=126, overlap_tokens=20)
    assert chunker.reuses_ids
    (document,) = chunker.chunk([unit * 700])
    for chunk in document.chunks:
        own = tokenizer.encode(chunk.text, add_special_tokens=False).ids
        assert chunk.token_ids.tolist() == own
        assert len(own) <= 126


@pytest.mark.parametrize("document", ["  pump  ", "pump ", "\tpump\t", " \n pump"])
def test_ids_of_a_document_without_a_cut_are_those_without_its_outer_spaces(document: str) -> None:
    """A chunk has no space at its edges; a tokenizer may have tokens for them."""
    tokenizer = metaspace_of_whole_words()
    (found,) = Chunker(tokenizer, max_tokens=126, overlap_tokens=20).chunk([document])
    (chunk,) = found.chunks
    assert chunk.token_ids.tolist() == tokenizer.encode("pump", add_special_tokens=False).ids


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
