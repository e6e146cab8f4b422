"""A model as one file, for machines that reach no hub: what decides its vectors, and no more.

The archive is a ZIP without compression, which weights do not give way to, and a list of its files
with their SHA-256. Models that were unpacked are in the folder ``models`` of pgembed's home, each
in a folder of its own, where `resolve_model` finds them by name and revision.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pgqueue_embed.embedding.fingerprint import Fingerprint, decides_vectors, fingerprint
from pgqueue_embed.embedding.folder import check_folder
from pgqueue_embed.errors import ModelError, UsageError
from pgqueue_embed.local_server.default import default_home
from pgqueue_embed.untrusted.bounded_file import UnreadableFile, read_json
from pgqueue_embed.whole_file import replacing

LIST = "pgembed-model.json"
MOST_LIST_BYTES = 1024**2
BLOCK_BYTES = 1 << 20
# Any that a system takes; the name of a model may hold others.
_PLAIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._"


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The list in an archive: the model's `name` and `revision`, and SHA-256 by relative path."""

    name: str
    revision: str | None
    files: Mapping[str, str]

    @property
    def folder(self) -> Path:
        """Where it is unpacked to."""
        lines = "".join(f"{name}\0{digest}\n" for name, digest in sorted(self.files.items()))
        digest = hashlib.sha256(lines.encode()).hexdigest()
        return _models() / f"{_plain(self.name)}@{digest[:16]}"


def export_model(path: Path, name: str, revision: str | None, archive: Path) -> Fingerprint:
    """Pack the model in folder `path` into a new file, and return its fingerprint.

    Raises UsageError where the file is there already or cannot be written, ModelError for an
    adapter, whose base is another model.
    """
    found = fingerprint(path)
    if any(PurePosixPath(file).name == "adapter_config.json" for file in found.files):
        raise ModelError(
            f"model {name} is an adapter; save it merged with its base (merge_and_unload), and"
            " make the pipeline with that folder"
        )
    contents = Contents(name=name, revision=revision, files=found.files)
    try:
        if archive.exists():
            raise UsageError(f"{archive} is there already; remove it, or name another file")
        with replacing(archive) as new, zipfile.ZipFile(new, "w", zipfile.ZIP_STORED) as packed:
            packed.writestr(LIST, json.dumps(asdict(contents), indent=1))
            for file in found.files:
                packed.write((path / file).resolve(), file)
    except OSError as error:
        raise UsageError(f"cannot write {archive}: {error.strerror}") from None
    return found


def import_model(archive: Path) -> tuple[Contents, Path]:
    """Unpack an archive, and return what is in it and its folder; one that is there is left.

    Every file is compared with its SHA-256. Raises ModelError for an archive that is none, or
    damaged, or whose model is not a whole one; then nothing of it is kept.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            contents = _contents(packed, archive)
            folder = contents.folder
            if not folder.is_dir():
                _unpack(packed, contents, folder, archive)
    except OSError as error:
        raise ModelError(f"{archive}: {error.strerror or error}") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"{archive} is not an archive of a model: {error}") from None
    return contents, folder


def imported_model(name: str, revision: str | None) -> tuple[Path, str | None] | None:
    """Return folder and revision of a model that was unpacked here; None if there is none."""
    for folder in sorted(_models().glob(f"{_plain(name)}@*")):
        try:
            contents = _parsed(read_json(folder / LIST, MOST_LIST_BYTES))
        except (OSError, UnreadableFile, ModelError):
            continue
        if contents.name == name and revision in (None, contents.revision):
            return folder, contents.revision
    return None


def _models() -> Path:
    return default_home() / "models"


def _plain(name: str) -> str:
    return "".join(each if each in _PLAIN else "-" for each in name)[-100:]


def _contents(packed: zipfile.ZipFile, archive: Path) -> Contents:
    try:
        with packed.open(LIST) as file:
            text = file.read(MOST_LIST_BYTES + 1)
        return _parsed(json.loads(text))
    except (KeyError, ValueError, RecursionError):
        raise ModelError(f"{archive} is not an archive of a model: it has no {LIST}") from None
    except ModelError as error:
        raise ModelError(f"{archive} is not an archive of a model: {error}") from None


def _parsed(values: Any) -> Contents:
    """Return the list that `values` are; raises ModelError for what no export writes."""
    if not isinstance(values, dict) or set(values) != {"name", "revision", "files"}:
        raise ModelError(f"{LIST} is another one")
    name, revision, files = values["name"], values["revision"], values["files"]
    is_named = isinstance(name, str) and isinstance(revision, (str, type(None)))
    if not is_named or not isinstance(files, dict) or not files:
        raise ModelError(f"{LIST} is another one")
    for file, digest in files.items():
        path = PurePosixPath(file)
        is_inside = not path.is_absolute() and ".." not in path.parts and "\\" not in file
        if not (is_inside and decides_vectors(Path(file)) and isinstance(digest, str)):
            raise ModelError(f"{file!r} is no file of a model")
    return Contents(name=name, revision=revision, files=files)


def _unpack(packed: zipfile.ZipFile, contents: Contents, folder: Path, archive: Path) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for file, digest in contents.files.items():
            target = partial / file
            target.parent.mkdir(parents=True, exist_ok=True)
            with _member(packed, file, archive) as source, target.open("wb") as copy:
                found = _copied(source, copy)
            if found != digest:
                raise ModelError(f"{archive} is damaged: {file} has another SHA-256")
        check_folder(partial, contents.name)
        (partial / LIST).write_text(json.dumps(asdict(contents)), encoding="utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _member(packed: zipfile.ZipFile, file: str, archive: Path) -> IO[bytes]:
    """Open a file of the archive; one that is compressed could be of any size."""
    try:
        member = packed.getinfo(file)
    except KeyError:
        raise ModelError(f"{archive} is incomplete: it has no {file}") from None
    if member.compress_type != zipfile.ZIP_STORED:
        raise ModelError(f"{archive} is not an archive of a model: {file} is compressed")
    return packed.open(member)


def _copied(source: IO[bytes], copy: IO[bytes]) -> str:
    """Copy a file and return its SHA-256."""
    digest = hashlib.sha256()
    for block in _blocks(source):
        digest.update(block)
        copy.write(block)
    return digest.hexdigest()


def _blocks(source: IO[bytes]) -> Iterator[bytes]:
    while block := source.read(BLOCK_BYTES):
        yield block
