"""Identifies a model by its content: equal wherever the same vectors are computed."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from pgqueue_embed.errors import ModelError
from pgqueue_embed.untrusted.bounded_file import UnreadableFile, read_json

# Whatever can change a vector; not read-me files, training logs or other frameworks' weights.
_PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "modules.json",
    "config.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "router_config.json",
    "*processor_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "vocab.*",
    "merges.txt",
    "adapter_config.json",
    "*.model",
)
# An adapter changes the weights of another model, whose files count as if they were in a folder.
_ADAPTER = "adapter_config.json"
_BASE = "base"
_OTHER_FRAMEWORKS = {"onnx", "openvino", "coreml", ".git", ".cache"}

_hashes: dict[tuple[str, int, int, int], str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """``digest`` stands for the whole model; ``files`` maps relative paths to SHA-256 digests."""

    digest: str
    files: dict[str, str]

    def difference(self, other: Fingerprint) -> list[str]:
        """Name the files that differ from ``other``, or exist on one side only, sorted."""
        names = self.files.keys() | other.files.keys()
        return sorted(name for name in names if self.files.get(name) != other.files.get(name))

    def continues(self, earlier: Fingerprint) -> bool:
        """Tell whether ``earlier`` is of the same files, from before those of adapters counted."""
        added = self.difference(earlier)
        return all(
            name not in earlier.files and name.startswith((_ADAPTER, f"{_BASE}/")) for name in added
        )


def fingerprint(path: Path) -> Fingerprint:
    """Hash the files of a model folder that decide its vectors, following symbolic links.

    Those of the model that an adapter is for count too. Hashes are remembered in memory until a
    file changes; nothing is written to disk. Raises ModelError if an adapter's model is not here.
    """
    files = _files(path)
    for adapter in path.rglob(_ADAPTER):
        files |= {f"{_BASE}/{name}": digest for name, digest in _files(_base_of(adapter)).items()}
    lines = "".join(f"{name}\0{digest}\n" for name, digest in sorted(files.items()))
    return Fingerprint(digest=hashlib.sha256(lines.encode()).hexdigest(), files=files)


def _files(path: Path) -> dict[str, str]:
    return {
        file.relative_to(path).as_posix(): _hash(file)
        for file in sorted(path.rglob("*"))
        if decides_vectors(file.relative_to(path)) and file.is_file()
    }


def _base_of(adapter: Path) -> Path:
    """Return the folder of the model that an adapter is for, on this machine."""
    from huggingface_hub import try_to_load_from_cache

    try:
        settings = read_json(adapter)
    except UnreadableFile as error:
        raise ModelError(str(error)) from error
    if not isinstance(settings, dict):
        raise ModelError(f"{adapter} does not say which model it is for")
    base = str(settings.get("base_model_name_or_path"))
    if Path(base).is_dir():
        return Path(base)
    with suppress(ValueError, OSError):
        found = try_to_load_from_cache(base, "config.json", revision=settings.get("revision"))
        if isinstance(found, str):
            return Path(found).parent
    raise ModelError(
        f"{adapter.parent} is an adapter for {base}, which is not on this machine: fetch that"
        " model first, or save the two merged (merge_and_unload) and use that folder"
    )


def decides_vectors(relative: Path) -> bool:
    """Return whether a file counts, given by its path in the folder of a model."""
    if _OTHER_FRAMEWORKS & set(relative.parts):
        return False
    return any(fnmatch(relative.name, pattern) for pattern in _PATTERNS)


def _hash(file: Path) -> str:
    real = file.resolve()
    status = real.stat()
    key = (str(real), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if key not in _hashes:
        digest = hashlib.sha256()
        with real.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        _hashes[key] = digest.hexdigest()
    return _hashes[key]
