"""Folders that are models, and how two of them are told apart."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pgqueue_embed.embedding import as_folder, fingerprint, resolve_model
from pgqueue_embed.embedding.folder import check_folder, refuse_pickles
from pgqueue_embed.embedding.resolve import BUNDLED_NAME
from pgqueue_embed.errors import ModelError

MODULES = [
    {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with the files of a model; nothing that could be loaded."""
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "modules.json").write_text(json.dumps(MODULES))
    (folder / "config.json").write_text("{}")
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("read me")
    return folder


def test_a_whole_folder_is_taken_as_it_is(model: Path) -> None:
    resolved = resolve_model(str(model))
    assert (resolved.path, resolved.revision) == (model, None)


def test_the_bundled_model_is_found_by_either_name_without_a_network() -> None:
    short, full = resolve_model("all-MiniLM-L6-v2"), resolve_model(BUNDLED_NAME)
    assert short == full
    assert short.name == BUNDLED_NAME
    assert (short.path / "model.safetensors").is_file()


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"modules\.json or config\.json"):
        resolve_model(str(tmp_path))


def test_a_path_that_is_not_there_is_no_name_of_the_hub() -> None:
    with pytest.raises(ModelError, match="no model folder"):
        resolve_model("./no-such-folder")


def test_folder_in_the_working_folder_does_not_take_the_place_of_a_model_by_its_name(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("all-MiniLM-L6-v2", BUNDLED_NAME, "mine/model"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copytree(model, tmp_path / name)
    assert resolve_model("all-MiniLM-L6-v2") == resolve_model(BUNDLED_NAME)
    assert tmp_path not in resolve_model(BUNDLED_NAME).path.parents
    assert resolve_model("./mine/model").path == tmp_path / "mine/model"
    assert resolve_model(as_folder("mine/model")).path == tmp_path / "mine/model"
    with pytest.raises(ModelError, match=r"for the folder write \./mine/model"):
        resolve_model("mine/model")


def test_pickled_weights_are_refused_by_name_with_the_way_out(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin only as a pickle.*save_pretrained"):
        resolve_model(str(model))


def test_a_pickled_module_beside_safe_weights_is_refused() -> None:
    with pytest.raises(ModelError, match=r"2_Dense/pytorch_model\.bin"):
        refuse_pickles(["model.safetensors", "2_Dense/pytorch_model.bin"], "m")


@pytest.mark.parametrize(
    "files",
    [
        ["model.safetensors", "pytorch_model.bin"],
        ["model.safetensors", "onnx/model.bin", "training_args.bin", "logs/optimizer.pt"],
        ["0_StaticEmbedding/model.safetensors"],
    ],
)
def test_pickles_beside_safe_weights_are_left_unread(files: list[str]) -> None:
    refuse_pickles(files, "m")


def test_no_weights_at_all_are_refused(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights in safetensors"):
        check_folder(model, "m")


@pytest.mark.parametrize("name", ["modeling.Custom", "someone/repo--modeling.Custom", "os.path"])
def test_code_of_the_models_own_is_refused(model: Path, name: str) -> None:
    (model / "modules.json").write_text(json.dumps([{"idx": 0, "path": "", "type": name}]))
    with pytest.raises(ModelError, match="code of its own"):
        check_folder(model, "m")


def test_a_half_downloaded_model_is_told_from_a_whole_one(model: Path) -> None:
    (model / "1_Pooling" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"incomplete: 1_Pooling/config\.json is missing"):
        check_folder(model, "m")


def test_a_missing_shard_is_noticed(model: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model-2\.safetensors is missing"):
        check_folder(model, "m")


def test_a_broken_configuration_is_one_line(model: Path) -> None:
    (model / "modules.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        check_folder(model, "m")


def test_a_fingerprint_is_the_same_wherever_the_files_are(model: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    for file in model.rglob("*"):
        target = linked / file.relative_to(model)
        if file.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file)
    assert fingerprint(linked) == fingerprint(model)
    assert set(fingerprint(model).files) == {
        *("1_Pooling/config.json", "config.json", "model.safetensors"),
        *("modules.json", "tokenizer.json"),
    }


def test_a_changed_byte_changes_the_fingerprint_and_is_named(model: Path) -> None:
    before = fingerprint(model)
    (model / "model.safetensors").write_bytes(b"weightz")
    (model / "vocab.txt").write_text("new")
    (model / "README.md").write_text("changed")
    after = fingerprint(model)
    assert after.digest != before.digest
    assert after.difference(before) == ["model.safetensors", "vocab.txt"]
    assert before.difference(before) == []


def test_importing_the_package_loads_no_torch() -> None:
    code = (
        "import sys, pgqueue_embed.embedding;"
        "print(sorted({'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
