"""Queries computed without the libraries have their vectors, or are left to them.

Compared to what `EmbeddingModel` gives, which other tests hold to sentence-transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from pgqueue_embed.embedding import EmbeddingModel, ModelUse, resolve_model
from pgqueue_embed.embedding.light_encoder import LightEncoder, open_light_encoder
from pgqueue_embed.embedding.model_use import AS_ITS_FILES_SAY
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL
from tests.support.models import bundled_model
from tests.support.nasty import CONTROL, NASTY
from tests.support.zoo import BERT, ROBERTA, ZOO, Animal, Specials, static_model, tokenizer

MOST_DIFFERENCE = 1e-6

# The others have an architecture, a pooling or shards of weights that the library reads.
LIGHT = {
    "bert-mean",
    "bert-cls-prompts",
    "bert-half-dense",
    "distilbert-dense",
    "mpnet",
    "roberta",
    "roberta-joining-prompt",
    "xlm-r-split",
    "xlm-r-metaspace",
    "xlm-r-metaspace-prompt",
    "xlm-r-collapsing",
}


def light(folder: Path, use: ModelUse = AS_ITS_FILES_SAY) -> LightEncoder | None:
    return open_light_encoder(resolve_model(str(folder)), use)


def check_same_vectors(encoder: LightEncoder, model: EmbeddingModel, every: int = 1) -> None:
    """Both give the same for all texts but those that are left to the library."""
    compared = 0
    for text in (*NASTY, *CONTROL)[::every]:
        if not text.strip() or (found := encoder.encode(text)) is None:
            continue
        difference = np.abs(found - model.encode_query(text)).max()
        assert difference <= MOST_DIFFERENCE, (text, difference)
        compared += 1
    assert compared > 20 // every


@pytest.mark.parametrize("name", ZOO)
def test_vectors_are_those_of_the_library_or_left_to_it(name: str, tmp_path: Path) -> None:
    folder = ZOO[name].save(tmp_path / "model")
    encoder = light(folder)
    assert (encoder is not None) == (name in LIGHT)
    if encoder is not None:
        check_same_vectors(encoder, EmbeddingModel.load(resolve_model(str(folder)), device="cpu"))


def test_all_that_is_light_is_in_the_zoo() -> None:
    assert ZOO.keys() >= LIGHT


def test_bundled_model() -> None:
    encoder = open_light_encoder(resolve_model(DEFAULT_MODEL), AS_ITS_FILES_SAY)
    assert encoder is not None
    check_same_vectors(encoder, bundled_model(), every=3)


def test_a_table_of_vectors_is_left_to_the_library(tmp_path: Path) -> None:
    assert light(static_model(tmp_path / "model")) is None


# Prompts of a pipeline ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose files name prompts."""
    return ZOO["bert-cls-prompts"].save(tmp_path_factory.mktemp("light") / "model")


@pytest.mark.parametrize("prompt", ["", "see: ", "no\nspace:"])
def test_prompt_of_the_pipeline_comes_first(folder: Path, prompt: str) -> None:
    use = ModelUse(query_prompt=prompt)
    encoder = light(folder, use)
    assert encoder is not None
    model = EmbeddingModel.load(resolve_model(str(folder)), device="cpu", use=use)
    check_same_vectors(encoder, model)


@pytest.mark.parametrize(
    "use", [ModelUse(control_tokens=True), ModelUse(query_prompt="[SEP]"), ModelUse(pooling="cls")]
)
def test_uses_that_are_left_to_the_library(folder: Path, use: ModelUse) -> None:
    assert light(folder, use) is None


def test_what_is_too_long_or_spells_a_control_token_is_left_to_the_library(folder: Path) -> None:
    encoder = light(folder)
    assert encoder is not None
    assert encoder.encode("pump [SEP] alarm") is None
    model = EmbeddingModel.load(resolve_model(str(folder)), device="cpu")
    words = 1
    while encoder.encode("pump " * words) is not None:
        words += 1
    with pytest.raises(UsageError, match="the query has"):
        model.encode_query("pump " * words)


# Tokenizers that transformers makes anew ------------------------------------------------------


@dataclass(frozen=True)
class MadeAnew:
    """A class of tokenizer, with a trained one to take the vocabulary from, and its settings."""

    architecture: str
    kind: str
    specials: Specials
    settings: dict[str, Any]

    def save(self, class_name: str, folder: Path) -> Path:
        animal = Animal(architecture=self.architecture, tokenizer=self.kind, specials=self.specials)
        animal.save(folder)
        state = json.loads(tokenizer(self.kind, self.specials).to_str())["model"]
        made = getattr(transformers, class_name)(
            **_vocabulary(state), **self.specials.names, **self.settings
        )
        made.save_pretrained(folder)
        edit(folder, "tokenizer_config.json", tokenizer_class=class_name, model_max_length=96)
        return folder


def _vocabulary(state: dict[str, Any]) -> dict[str, Any]:
    if "merges" in state:
        return {"vocab": state["vocab"], "merges": [tuple(each) for each in state["merges"]]}
    if isinstance(state["vocab"], list):
        return {"vocab": [tuple(each) for each in state["vocab"]]}
    return {"vocab": state["vocab"]}


CASED = {"do_lower_case": False, "tokenize_chinese_chars": False, "strip_accents": True}
ANEW = {
    "BertTokenizer": MadeAnew("Bert", "wordpiece", BERT, {}),
    "BertTokenizer, cased": MadeAnew("Bert", "wordpiece", BERT, CASED),
    "DistilBertTokenizer": MadeAnew("DistilBert", "wordpiece", BERT, {}),
    "MPNetTokenizer": MadeAnew("MPNet", "wordpiece", BERT, {}),
    "RobertaTokenizer": MadeAnew("Roberta", "byte-bpe", ROBERTA, {"add_prefix_space": True}),
    "XLMRobertaTokenizer": MadeAnew("XLMRoberta", "split metaspace", ROBERTA, {}),
}


@pytest.mark.parametrize("name", ANEW)
def test_tokenizers_that_are_made_anew(name: str, tmp_path: Path) -> None:
    folder = ANEW[name].save(name.partition(",")[0], tmp_path / "model")
    encoder = light(folder)
    assert encoder is not None
    check_same_vectors(encoder, EmbeddingModel.load(resolve_model(str(folder)), device="cpu"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("BertTokenizer", {"do_lower_case": False}),
        ("BertTokenizer", {"cls_token": "[MASK]"}),
        ("BertTokenizer", {"tokenizer_class": "FunnelTokenizer"}),
        ("RobertaTokenizer", {"add_prefix_space": False}),
        ("XLMRobertaTokenizer", {"add_prefix_space": False}),
    ],
)
def test_tokenizer_that_its_settings_contradict(
    name: str, said: dict[str, Any], tmp_path: Path
) -> None:
    folder = ANEW[name].save(name, tmp_path / "model")
    assert light(folder) is not None
    edit(folder, "tokenizer_config.json", **said)
    assert light(folder) is None


# What is not understood -----------------------------------------------------------------------


def edit(folder: Path, name: str, **settings: Any) -> None:
    """Change settings of a file of the model; those that are None are taken out."""
    file = folder / name
    changed = {**json.loads(file.read_text()), **settings}
    file.write_text(json.dumps({key: each for key, each in changed.items() if each is not None}))


def edited(name: str, **settings: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder, name, **settings)


def without_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.bias"]
    save_file(weights, folder / "model.safetensors")


def with_another_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.2.output.dense.bias"] = np.zeros(32, np.float32)
    save_file(weights, folder / "model.safetensors")


def cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def with_a_file(name: str, content: str = "{}") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(content)

    return write


NOT_UNDERSTOOD: dict[str, Callable[[Path], None]] = {
    "activation": edited("config.json", hidden_act="gelu_new"),
    "no activation": edited("config.json", hidden_act=None),
    "positions": edited("config.json", position_embedding_type="relative_key"),
    "decoder": edited("config.json", is_decoder=True),
    "cross attention": edited("config.json", add_cross_attention=True),
    "quantised": edited("config.json", quantization_config={"bits": 8}),
    "architecture": edited("config.json", model_type="electra"),
    "unknown setting": edited("config.json", something=1),
    "sizes": edited("config.json", num_hidden_layers=3),
    "reading": edited("sentence_bert_config.json", do_lower_case=True),
    "modality": edited("sentence_bert_config.json", modality_config={"message": {}}),
    "pooling": edited("1_Pooling/config.json", pooling_mode="max"),
    "two poolings": edited("1_Pooling/config.json", pooling_mode=["cls", "mean"]),
    "prompt left out": edited("1_Pooling/config.json", include_prompt=False),
    "default prompt": edited("config_sentence_transformers.json", default_prompt_name="query"),
    "dimensions": edited("config_sentence_transformers.json", truncate_dim=8),
    "prefix": edited("tokenizer_config.json", add_bos_token=True),
    "splits": edited("tokenizer_config.json", split_special_tokens=True),
    "special": edited("tokenizer_config.json", unk_token="pump"),
    "template": with_a_file("chat_template.jinja", "{{ messages }}"),
    "added": with_a_file("added_tokens.json"),
    "adapter": with_a_file("adapter_config.json"),
    "without a weight": without_a_weight,
    "with another weight": with_another_weight,
    "cut off": cut_off,
}


@pytest.mark.parametrize("change", NOT_UNDERSTOOD)
def test_what_is_not_understood_is_left_to_the_library(
    change: str, folder: Path, tmp_path: Path
) -> None:
    copied = copytree(folder, tmp_path / "model")
    resolved = resolve_model(str(copied))
    assert open_light_encoder(resolved, AS_ITS_FILES_SAY) is not None
    NOT_UNDERSTOOD[change](copied)
    assert open_light_encoder(resolved, AS_ITS_FILES_SAY) is None
