"""`pgembed model export` and `import`: the same model on a machine without a hub, or none."""

from __future__ import annotations

import inspect
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.main import get_command

from pgqueue_embed.cli.app import app
from pgqueue_embed.db.session import Connection
from pgqueue_embed.embedding import resolve_model
from pgqueue_embed.embedding.fingerprint import fingerprint
from pgqueue_embed.embedding.model_archive import LIST, export_model, import_model
from pgqueue_embed.errors import ModelError
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.model import check_local_model
from tests.support.commands import pgembed
from tests.support.corpus import make_source, texts
from tests.support.models import make_tiny_model

NAME, REVISION = "owner/tiny", "0123abcd"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of some hundred kilobytes."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def archive(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as from a hub, in one file."""
    file = tmp_path_factory.mktemp("archives") / "model.zip"
    export_model(tiny, NAME, REVISION, file)
    return file


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has no model and reaches no hub."""
    monkeypatch.setenv("PGEMBED_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "home"


def test_model_of_a_hub_is_found_by_name_and_revision(
    home: Path, tiny: Path, archive: Path
) -> None:
    with pytest.raises(ModelError, match="pgembed model export and import") as caught:
        resolve_model(NAME)
    assert str(caught.value).startswith(
        f"model {NAME} is not on this machine and HF_HUB_OFFLINE is set; "
    )
    assert "\n" not in str(caught.value)

    said = pgembed("", "model", "import", str(archive)).stdout
    again = pgembed("", "model", "import", str(archive))

    assert said == f"unpacked: workers find {NAME} here\n"
    assert (again.stdout, again.exit_code) == (said, 0)
    for revision in (None, REVISION):
        found = resolve_model(NAME, revision=revision)
        assert (found.name, found.revision) == (NAME, REVISION)
        assert fingerprint(found.path) == fingerprint(tiny)
    with pytest.raises(ModelError):
        resolve_model(NAME, revision="another")


def test_model_of_a_folder_goes_where_no_such_folder_is(
    home: Path, tiny: Path, tmp_path: Path, connection: Connection, conninfo: str
) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(tiny, folder)
    make_source(connection, texts(1))
    names = ("reports", "--source-table", "reports", "--text-field", "body")
    pgembed(conninfo, "create", *names, "--model", str(folder))
    file = str(tmp_path / "model.zip")
    assert pgembed(conninfo, "model", "export", "reports", file).exit_code == 0
    pipeline = load_pipeline(connection, "reports")
    shutil.rmtree(folder)

    said = pgembed("", "model", "import", file).stdout

    (unpacked,) = home.glob("models/*")
    assert said == f"unpacked; work with it: pgembed work --model-path {unpacked}\n"
    assert check_local_model(pipeline, str(unpacked)).path == unpacked


def test_only_the_model_that_the_pipeline_remembers_is_packed(
    tiny: Path, tmp_path: Path, connection: Connection, conninfo: str
) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(tiny, folder)
    make_source(connection, texts(1))
    names = ("reports", "--source-table", "reports", "--text-field", "body")
    pgembed(conninfo, "create", *names, "--model", str(folder))
    (folder / "vocab.txt").write_text("another")

    failed = pgembed(conninfo, "model", "export", "reports", str(tmp_path / "model.zip"))

    assert failed.exit_code == 1
    assert "vocab.txt differ" in (failed.error or "")
    assert not list(tmp_path.glob("*.zip*"))


def test_file_that_is_there_is_not_replaced(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.zip"
    file.write_text("mine")

    with pytest.raises(Exception, match="is there already"):
        export_model(tiny, NAME, REVISION, file)

    assert file.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [file]


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_archive_gives_the_same_model_or_none(
    home: Path, tiny: Path, archive: Path, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(archive.read_bytes())
    # Half of them in what is not weights: heads, the list, the directory at the end.
    place = data.draw(
        st.one_of(
            st.integers(0, len(content) - 1),
            st.integers(0, 3_000),
            st.integers(len(content) - 1_500, len(content) - 1),
        )
    )
    content[place] ^= data.draw(st.integers(1, 255))
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(content)

    try:
        _, folder = import_model(damaged)
    except ModelError:
        assert list(home.glob("models/*")) == []
        assert list(home.glob("models/.*")) == []
    else:
        assert fingerprint(folder) == fingerprint(tiny)
        shutil.rmtree(home)


def repacked(archive: Path, target: Path, change: Any, *, compressed: bool = False) -> Path:
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(archive) as before, zipfile.ZipFile(target, "w", method) as after:
        contents = json.loads(before.read(LIST))
        members = {name: before.read(name) for name in before.namelist() if name != LIST}
        change(contents, members)
        after.writestr(LIST, json.dumps(contents))
        for name, content in members.items():
            after.writestr(name, content)
    return target


def lead_outside(contents: dict[str, Any], members: dict[str, bytes]) -> None:
    members["../vocab.txt"] = members["vocab.txt"]
    contents["files"]["../vocab.txt"] = contents["files"]["vocab.txt"]


def lead_to_the_root(contents: dict[str, Any], members: dict[str, bytes]) -> None:
    members["/tmp/vocab.txt"] = members["vocab.txt"]
    contents["files"]["/tmp/vocab.txt"] = contents["files"]["vocab.txt"]


def bring_code(contents: dict[str, Any], members: dict[str, bytes]) -> None:
    members["modeling.py"] = b"import os"
    contents["files"]["modeling.py"] = "0"


def leave_out(contents: dict[str, Any], members: dict[str, bytes]) -> None:
    del members["vocab.txt"]


def leave_weights_out(contents: dict[str, Any], members: dict[str, bytes]) -> None:
    del members["model.safetensors"]
    del contents["files"]["model.safetensors"]


def say_nothing(contents: dict[str, Any], members: dict[str, bytes]) -> None:
    contents.clear()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lead_outside, "is no file of a model"),
        (lead_to_the_root, "is no file of a model"),
        (bring_code, "is no file of a model"),
        (leave_out, "it has no vocab.txt"),
        (leave_weights_out, "tiny"),
        (say_nothing, "is another one"),
    ],
)
def test_archive_that_no_export_writes_is_refused(
    home: Path, archive: Path, tmp_path: Path, change: Any, said: str
) -> None:
    file = repacked(archive, tmp_path / "other.zip", change)

    failed = pgembed("", "model", "import", str(file))

    assert failed.exit_code == 1
    assert said in (failed.error or "")
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_what_is_no_archive_or_compressed_is_refused(
    home: Path, archive: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    compressed = repacked(archive, tmp_path / "z.zip", lambda *_: None, compressed=True)

    for given_file in (file, tmp_path, tmp_path / "none", compressed):
        failed = pgembed("", "model", "import", str(given_file))
        assert failed.exit_code == 1
        assert str(given_file) in (failed.error or "")
        assert "\n" not in (failed.error or "")


def test_no_argument_of_a_command_is_taken_for_the_configuration_file() -> None:
    having = {
        callback.__name__
        for callback in _callbacks(get_command(app))
        if "file" in inspect.signature(callback).parameters
    }

    assert having == {"apply"}


def _callbacks(command: Any) -> Iterator[Any]:
    for each in getattr(command, "commands", {}).values():
        yield from _callbacks(each)
    if not hasattr(command, "commands"):
        yield inspect.unwrap(command.callback)
