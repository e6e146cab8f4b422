"""Measures the fastest batch size, once per host, device, model and precision.

The best size depends on caches, on launch costs and on the width of the model, and no table knows
the next machine. What was found is kept in the user's cache folder, unless the times say that other
programs had a part in them.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import cycle, islice
from pathlib import Path
from statistics import median

from pgqueue_embed.embedding.devices import (
    describe_device,
    is_out_of_memory,
    kind_of,
    release_memory,
)
from pgqueue_embed.embedding.model import EmbeddingModel
from pgqueue_embed.untrusted.bounded_file import UnreadableFile, read_json

# Tokens of a batch, each twice the one before: a device's rate is flat around its best size.
CANDIDATES = {
    "cpu": (512, 1_024, 2_048),
    "mps": (4_096, 8_192, 16_384, 32_768),
    "cuda": (16_384, 32_768, 65_536, 131_072),
}
# No other is ever found; the file may hold anything, and a size decides about memory.
SIZES = {size for sizes in CANDIDATES.values() for size in sizes}

# Some thousand models, devices and hosts.
MOST_BYTES = 1024**2

SEQUENCE_TOKENS = 128
ROUNDS = 10
BUDGET_SECONDS = 5.0

# A smaller batch holds less memory and renews the lease more often, so that it wins within noise.
AS_GOOD = 0.97

# Passes of one size on a quiet machine differ by a few hundredths.
STEADY = 1.15
FEWEST_TURNS = 3  # fewer decide nothing

Forward = Callable[[int], None]
Turns = Mapping[int, Sequence[float]]


def calibrate(model: EmbeddingModel, *, anew: bool = False, folder: Path | None = None) -> bool:
    """Set ``model.limits`` to the batch size that this device computes fastest.

    Takes some seconds the first time, or whenever it is to be found ``anew``, and afterwards reads
    a file in ``folder`` (the user's cache folder). Returns whether the size is settled; if the
    machine was busy, what was found before stays, or this size is used and found again next time.
    Models that only look up a table keep their limits.
    """
    if not model.is_transformer:
        return True
    folder = folder or _cache_folder()
    turns: Turns = {}
    with _turn(folder):
        known = _read(folder)
        key = _key(model)
        if anew or key not in known:
            turns = time_model(model)
            found = best_size(turns, smallest=_candidates(model)[0])
            if is_steady(turns):
                known[key] = found
                _write(folder, known)
            known.setdefault(key, found)
    model.limits = model.limits.resized(known[key])
    return is_steady(turns)


def time_model(model: EmbeddingModel) -> Turns:
    """Return the seconds of the model's forward passes, by size; see `time_sizes`."""
    length = min(SEQUENCE_TOKENS, model.max_sequence_tokens)
    chunks = model.sample_chunks(length)

    def forward(tokens: int) -> None:
        rows = model.limits.resized(tokens).rows_at(length)
        model.forward(list(islice(cycle(chunks), rows)), length=length)

    with model.session():
        return time_sizes(_candidates(model), forward, device=model.device)


def _candidates(model: EmbeddingModel) -> Sequence[int]:
    return CANDIDATES[kind_of(model.device)]


def time_sizes(
    candidates: Sequence[int],
    forward: Forward,
    *,
    device: str,
    clock: Callable[[], float] = time.perf_counter,
) -> Turns:
    """Return the seconds of each forward pass, by size, of the sizes that fit memory and budget.

    The sizes take turns, so that what else the machine does hits all alike; the first turn also
    pays for what a device prepares for a new shape.
    """
    turns: dict[int, list[float]] = {}
    fitting = list(candidates)
    began = clock()
    for size in list(candidates) * ROUNDS:
        if turns and clock() - began > BUDGET_SECONDS:
            break
        if size not in fitting:
            continue
        started = clock()
        if _fits(forward, size, device):
            turns.setdefault(size, []).append(clock() - started)
        else:
            fitting = [each for each in fitting if each < size]
    return {size: seconds for size, seconds in turns.items() if size in fitting}


def _fits(forward: Forward, size: int, device: str) -> bool:
    """Run a forward pass; returns whether the device's memory was large enough for it."""
    try:
        forward(size)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        release_memory(device)
        return False
    return True


def is_steady(turns: Turns) -> bool:
    """Return whether passes of one size took the same time, or are too few to tell."""
    return all(
        median(seconds) <= STEADY * min(seconds)
        for seconds in turns.values()
        if len(seconds) >= FEWEST_TURNS
    )


def best_size(turns: Turns, *, smallest: int) -> int:
    """Return the smallest size whose rate at its best is as good as any, noise allowed for.

    Without any time, because not one size fits the memory, that is `smallest`.
    """
    if not turns:
        return smallest
    rates = {size: size / min(seconds) for size, seconds in turns.items()}
    return min(size for size, rate in rates.items() if rate >= AS_GOOD * max(rates.values()))


def _key(model: EmbeddingModel) -> str:
    import torch

    parts = (
        platform.node(),
        describe_device(model.device),
        f"{torch.get_num_threads()} threads",
        f"torch {torch.__version__}",
        model.precision,
        model.fingerprint.digest,
    )
    return " | ".join(parts)


def _cache_folder() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("pgembed")


def _file(folder: Path) -> Path:
    return folder / "batch-sizes.json"


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Let one process of this machine measure at a time; where no file can be, all may."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "batch-sizes.lock").open("w")
    except OSError:
        yield
        return
    with lock:
        with suppress(OSError):  # a network file system may know no locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(folder: Path) -> dict[str, int]:
    """Return the sizes found before; nothing where the file is absent or not ours."""
    try:
        known = read_json(_file(folder), MOST_BYTES)
    except (OSError, UnreadableFile):
        return {}
    if not isinstance(known, dict):
        return {}
    return {key: size for key, size in known.items() if type(size) is int and size in SIZES}


def _write(folder: Path, known: dict[str, int]) -> None:
    """Replace the file as a whole; a folder that cannot be written costs seconds at each start."""
    partial = _file(folder).with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        partial.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        partial.replace(_file(folder))
