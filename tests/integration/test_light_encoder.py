"""Queries computed without the libraries have their vectors, or are left to them.

That they are the library's is seen in test_light_models.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pgqueue_embed.embedding import ModelUse, resolve_model
from pgqueue_embed.embedding.light_encoder import LightEncoder, open_light_encoder
from pgqueue_embed.embedding.light_network import open_light
from pgqueue_embed.embedding.model_use import AS_ITS_FILES_SAY
from pgqueue_embed.errors import UsageError
from tests.support.light_models import ANEW
from tests.support.models import edit
from tests.support.opened_models import load
from tests.support.zoo import ZOO, static_model


def light(folder: Path, use: ModelUse = AS_ITS_FILES_SAY) -> LightEncoder | None:
    return open_light_encoder(resolve_model(str(folder)), use)


def test_a_table_of_vectors_is_left_to_the_library(tmp_path: Path) -> None:
    assert light(static_model(tmp_path / "model")) is None


# Prompts of a pipeline ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose files name prompts."""
    return ZOO["bert-cls-prompts"].save(tmp_path_factory.mktemp("light") / "model")


@pytest.mark.parametrize(
    "use", [ModelUse(control_tokens=True), ModelUse(query_prompt="[SEP]"), ModelUse(pooling="cls")]
)
def test_uses_that_are_left_to_the_library(folder: Path, use: ModelUse) -> None:
    assert light(folder, use) is None
    assert open_light(folder, use) is None


def test_what_is_too_long_or_spells_a_control_token_is_left_to_the_library(folder: Path) -> None:
    encoder = light(folder)
    assert encoder is not None
    assert encoder.encode("pump [SEP] alarm") is None
    model = load(folder)
    words = 1
    while encoder.encode("pump " * words) is not None:
        words += 1
    with pytest.raises(UsageError, match="the query has"):
        model.encode_query("pump " * words)


# Tokenizers that transformers makes anew ------------------------------------------------------


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


@pytest.mark.parametrize(
    ("in_settings", "elsewhere", "is_light"),
    [
        ("[CLS]", "[CLS]", True),
        (None, "[CLS]", True),
        ("[CLS]", None, True),
        ("[CLS]", "[MASK]", False),
        (None, "[MASK]", False),
    ],
)
def test_control_token_that_two_files_name(
    in_settings: str | None, elsewhere: str | None, is_light: bool, tmp_path: Path
) -> None:
    folder = ANEW["BertTokenizer"].save("BertTokenizer", tmp_path / "model")
    edit(folder, "tokenizer_config.json", cls_token=in_settings)
    with_a_file("special_tokens_map.json")(folder)
    edit(folder, "special_tokens_map.json", cls_token=elsewhere)
    assert (light(folder) is not None) is is_light


def test_added_token_that_the_settings_have_otherwise(tmp_path: Path) -> None:
    folder = ZOO["bert-mean"].save(tmp_path / "model")
    state = json.loads((folder / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    token = {"content": "pump", **flags}
    number = state["model"]["vocab"]["pump"]
    state["added_tokens"].append({"id": number, **token})
    (folder / "tokenizer.json").write_text(json.dumps(state))
    for flag in flags:
        edit(folder, "tokenizer_config.json", added_tokens_decoder={number: token})
        assert light(folder) is not None
        # The library has the token of these settings, and reads pumping otherwise.
        other = token | {flag: True}
        edit(folder, "tokenizer_config.json", added_tokens_decoder={number: other})
        assert light(folder) is None


# What is not understood -----------------------------------------------------------------------


def test_a_number_that_the_code_of_a_network_fixes_is_not_asked_of_its_files(
    tmp_path: Path,
) -> None:
    folder = ZOO["distilbert-dense"].save(tmp_path / "model")
    assert light(folder) is not None
    edit(folder, "config.json", layer_norm_eps=0.5)
    assert light(folder) is None
    assert open_light(folder, AS_ITS_FILES_SAY) is None


def edited(name: str, **settings: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        edit(folder, name, **settings)

    return change


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
    "similarity": edited("config_sentence_transformers.json", similarity_fn_name="of its own"),
    "a limit of the tokenizer": edited("tokenizer_config.json", max_length=20),
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
    assert open_light(copied, AS_ITS_FILES_SAY) is not None
    NOT_UNDERSTOOD[change](copied)
    assert open_light_encoder(resolved, AS_ITS_FILES_SAY) is None
    assert open_light(copied, AS_ITS_FILES_SAY) is None
