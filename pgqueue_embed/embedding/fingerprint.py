"""Which model this is, by content: the same on every machine that computes the same vectors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

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
    "*.model",
)
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


def fingerprint(path: Path) -> Fingerprint:
    """Hash the files of a model folder that decide its vectors, following symbolic links.

    Hashes are remembered in memory until a file changes; nothing is written to disk.
    """
    files = {
        file.relative_to(path).as_posix(): _hash(file)
        for file in sorted(path.rglob("*"))
        if _counts(file.relative_to(path)) and file.is_file()
    }
    lines = "".join(f"{name}\0{digest}\n" for name, digest in sorted(files.items()))
    return Fingerprint(digest=hashlib.sha256(lines.encode()).hexdigest(), files=files)


def _counts(relative: Path) -> bool:
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
