"""Checks a model folder before it is loaded. Pure: names and JSON only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pgqueue_embed.errors import ModelError
from pgqueue_embed.untrusted.bounded_file import UnreadableFile, read_json

# Only these are fetched from a hub: no pickles, no code, no weights of other frameworks.
WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja")
UNWANTED = ("onnx/*", "openvino/*", "coreml/*", "*.onnx", "*.bin", "*.pt", "*.h5", "*.msgpack")

# What a library reads later, and has no words for when it cannot.
CONFIG_FILES = ("config.json", "modules.json", "_map.json", "config_sentence_transformers.json")

_PICKLED_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "sentencepiece")
_OTHER_FRAMEWORKS = {"onnx", "openvino", "coreml"}
_MODULES_WITH_FILES = ("Transformer", "Pooling", "Dense", "StaticEmbedding")

# The kinds of models that have a use here.
EMBEDDING = "embedding model"
CROSS_ENCODER = "CrossEncoder"

# What gives no single dense vector for a text, and how its files tell.
_OTHER_KINDS = {
    CROSS_ENCODER: "a cross-encoder, which scores pairs of texts",
    "SparseEncoder": "a sparse encoder (SPLADE), whose vectors have a dimension for each word",
    "MultiVectorEncoder": "a multi-vector model (ColBERT), which has a vector for each token",
}
_TELLING_MODULES = {
    "sparse_encoder": "SparseEncoder",
    "Splade": "SparseEncoder",
    "MLMTransformer": "SparseEncoder",
    "multi_vector": "MultiVectorEncoder",
    "pylate": "MultiVectorEncoder",
    "cross_encoder": CROSS_ENCODER,
    "LogitScore": CROSS_ENCODER,
}
_TELLING_ARCHITECTURES = {
    "ColBERT": "MultiVectorEncoder",
    "ForSequenceClassification": CROSS_ENCODER,
}

# Code of a model's own that transformers has as its own class, made for the same files.
_ADOPTED_CODE = {"NomicBertConfig", "NomicBertModel", "NomicBertForPreTraining"}
_READ_BY_CODE = ("AutoModel", "AutoConfig", "AutoTokenizer")


def check_folder(path: Path, name: str, kind: str = EMBEDDING) -> None:
    """Raise ModelError unless ``path`` is a whole model of a kind, in safetensors, without code."""
    if not any((path / file).is_file() for file in ("modules.json", "config.json")):
        raise ModelError(f"{path} is not a model folder: it has no modules.json or config.json")
    files = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    _refuse_other_kinds(path, name, kind)
    refuse_pickles(files, name)
    for file in files:
        if file.endswith(CONFIG_FILES):
            _read_json(path / file)
    _refuse_code(path, name)
    missing = list(_missing_files(path, set(files)))
    if missing:
        raise ModelError(f"model {name} is incomplete: {missing[0]} is missing in {path}")


def refuse_pickles(files: Iterable[str], name: str) -> None:
    """Raise ModelError where a folder's only weights are pickles, which can run any code.

    ``files`` are paths relative to the model.
    """
    paths = [PurePosixPath(file) for file in files]
    paths = [path for path in paths if not _OTHER_FRAMEWORKS & set(path.parts)]
    safe = {path.parent for path in paths if path.suffix == ".safetensors"}
    pickled = [path for path in paths if _is_pickled_weights(path) and path.parent not in safe]
    if pickled:
        raise ModelError(
            f"model {name} has {pickled[0]} only as a pickle, which can run any code when loaded; "
            "use a revision with model.safetensors, or convert it where you trust it: "
            "SentenceTransformer(OLD).save_pretrained(NEW)"
        )
    if not safe:
        raise ModelError(f"model {name} has no weights in safetensors")


def _is_pickled_weights(path: PurePosixPath) -> bool:
    return path.suffix in _PICKLED_SUFFIXES and not path.name.startswith(_NOT_WEIGHTS)


def _refuse_other_kinds(path: Path, name: str, wanted: str) -> None:
    """Raise ModelError for a model that sentence-transformers would turn into another one."""
    found = _kind(path)
    if found == wanted:
        return
    what = _OTHER_KINDS.get(found, "an embedding model")
    if wanted == CROSS_ENCODER:
        raise ModelError(
            f"model {name} is {what}, and no cross-encoder: re-ranking takes a model that scores"
            " pairs of texts, such as cross-encoder/ms-marco-MiniLM-L6-v2"
        )
    raise ModelError(
        f"model {name} is {what}: pgembed stores one vector for each chunk; choose an embedding"
        " model"
    )


def _kind(path: Path) -> str:
    """Return what a model is, as its files tell."""
    declared = _settings(path / "config_sentence_transformers.json").get("model_type")
    kinds = [declared] if isinstance(declared, str) and declared in _OTHER_KINDS else []
    kinds += [
        kind
        for module_type in _module_types(path)
        for part, kind in _TELLING_MODULES.items()
        if part in module_type
    ]
    if not (path / "modules.json").is_file():
        architectures = _settings(path / "config.json").get("architectures") or []
        kinds += [
            kind
            for architecture in (architectures if isinstance(architectures, list) else [])
            for part, kind in _TELLING_ARCHITECTURES.items()
            if part in str(architecture)
        ]
    return kinds[0] if kinds else EMBEDDING


def _module_types(path: Path) -> list[str]:
    types = [module["type"] for module in _modules(path)]
    for router in path.rglob("router_config.json"):
        types += map(str, _object(_read_json(router), "types", router).values())
    return types


def _refuse_code(path: Path, name: str) -> None:
    for module_type in _module_types(path):
        if not module_type.startswith("sentence_transformers."):
            raise ModelError(f"model {name} needs code of its own ({module_type}): refused")
    for file in (*path.rglob("config.json"), *path.rglob("tokenizer_config.json")):
        for reader, code in _code_of(file):
            raise ModelError(
                f"model {name} needs code of its own ({code} as {reader}), which is never run:"
                " without it, its vectors would be others"
            )


def _code_of(file: Path) -> Iterator[tuple[str, str]]:
    """Yield what a configuration has read by code of the model's own, and the class for it."""
    named = _settings(file).get("auto_map")
    for reader, reference in (named or {}).items() if isinstance(named, dict) else ():
        references = reference if isinstance(reference, list) else [reference]
        classes = [str(each).rpartition(".")[2] for each in references if each]
        if reader in _READ_BY_CODE and not _ADOPTED_CODE.issuperset(classes):
            yield reader, classes[0]


def _missing_files(path: Path, files: set[str]) -> Iterable[str]:
    for module in _modules(path):
        folder = module.get("path") or "."
        if module["type"].endswith(_MODULES_WITH_FILES) and folder != ".":
            inside = {file for file in files if file.startswith(f"{folder}/")}
            yield from () if inside else (f"{folder}/config.json",)
    for index in path.glob("*.safetensors.index.json"):
        shards = set(map(str, _object(_read_json(index), "weight_map", index).values()))
        yield from sorted(shards - files)


def _modules(path: Path) -> list[dict[str, str]]:
    """Return the modules of a model, as its list of them says; none where there is no list."""
    file = path / "modules.json"
    modules = _read_json(file) or []
    if not isinstance(modules, list) or not all(map(_is_module, modules)):
        raise ModelError(f"{file} is not a list of modules, each with a type and a path")
    return modules


def _is_module(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("type"), str)
        and isinstance(value.get("path") or "", str)
    )


def _settings(file: Path) -> dict[str, Any]:
    value = _read_json(file)
    return value if isinstance(value, dict) else {}


def _object(value: Any, name: str, file: Path) -> dict[str, Any]:
    found = value.get(name, {}) if isinstance(value, dict) else None
    if value is not None and not isinstance(found, dict):
        raise ModelError(f"{file} has no object '{name}', as it should")
    return found or {}


def _read_json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return read_json(path)
    except UnreadableFile as error:
        raise ModelError(str(error)) from error
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
