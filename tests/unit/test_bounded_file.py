"""Files that somebody else may have written: read so far and no further, or refused in a line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pgqueue_embed.configuration import read_toml
from pgqueue_embed.embedding import Memory
from pgqueue_embed.embedding.folder import check_folder
from pgqueue_embed.errors import PgembedError
from pgqueue_embed.local_server.layout import ServerLayout
from pgqueue_embed.local_server.postmaster import recorded_pid
from pgqueue_embed.untrusted.bounded_file import UnreadableFile, read_bounded, read_json

CONTENTS = {
    "nested": b"[" * 200_000,
    "nested objects": b'{"a":' * 200_000,
    "number": b"1" * 200_000,
    "not UTF-8": b"\xff\xfe" * 100,
    "another shape": b'[1, {"type": 3}, null]',
    "an object": b'{"types": [], "weight_map": 3}',
    "bytes": b"\x00" * 1000,
    "large": b" " * (5 * 1024**2),
}


def model_file(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        (folder / "config.json").write_bytes(b"{}")
        (folder / "model.safetensors").write_bytes(b"")
        (folder / "content").rename(folder / name)
        check_folder(folder, "mine")

    return read


def toml(folder: Path) -> None:
    content = (folder / "content").read_bytes()
    (folder / "pgembed.toml").write_bytes(b"a = " + content)
    read_toml(folder / "pgembed.toml")


def learnt(folder: Path) -> None:
    (folder / "content").rename(folder / "batch-sizes.json")
    assert Memory(folder).recall("types") is None


def server_file(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        (folder / "content").rename(folder / name)
        layout = ServerLayout(folder)
        return layout.port() if name == "embedded.conf" else layout.read(folder / name)

    return read


def pid(folder: Path) -> None:
    recorded_pid(folder / "content")


READERS = {
    "what was learnt": learnt,
    "toml": toml,
    "modules": model_file("modules.json"),
    "router": model_file("router_config.json"),
    "tokenizer settings": model_file("tokenizer_config.json"),
    "shards": model_file("model.safetensors.index.json"),
    "port": server_file("embedded.conf"),
    "version": server_file("PG_VERSION"),
    "pid": pid,
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_file_of_anything_is_ignored_or_refused_in_one_line(
    tmp_path: Path, reader: Callable[[Path], object], content: bytes
) -> None:
    (tmp_path / "content").write_bytes(content)
    said = None
    try:
        reader(tmp_path)
    except PgembedError as error:
        said = str(error)
    assert said is None or (str(tmp_path) in said and len(said) < 400 + len(str(tmp_path)))


def test_no_more_is_read_than_asked_for() -> None:
    with pytest.raises(UnreadableFile, match="more than 1,000 bytes"):
        read_bounded(Path("/dev/zero"), 1_000)


def test_json_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1]}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"a": [1]}
