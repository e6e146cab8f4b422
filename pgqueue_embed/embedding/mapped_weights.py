"""The weights of a safetensors file where they lie: a page is read when it is first used.

They are read alone, and mapped as if they were written to: torch warns of what cannot be.
"""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Names of the format, whose specification also limits the header.
_KINDS = {"F32": np.float32, "F16": np.float16}
_MOST_HEADER_BYTES = 100_000_000
_LENGTH_BYTES = 8

Weights = dict[str, NDArray[Any]]


def map_weights(path: Path) -> tuple[Weights, set[str]]:
    """Return the tensors of a file that are float32 or float16, and the names of all others.

    Raises OSError, ValueError, KeyError or TypeError for a file that is not of this format.
    """
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    begin = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    if begin > min(len(content), _MOST_HEADER_BYTES):
        raise ValueError(f"{path} has no header of safetensors")
    header = json.loads(content[_LENGTH_BYTES:begin])
    header.pop("__metadata__", None)
    weights = {
        name: _tensor(content, begin, entry)
        for name, entry in header.items()
        if entry["dtype"] in _KINDS
    }
    return weights, header.keys() - weights.keys()


def let_go(weight: NDArray[Any]) -> None:
    """Give back the memory of all pages of the file that an array is of; nothing for another one.

    A page is read again when it is used again.
    """
    base: Any = weight
    while isinstance(base, np.ndarray):
        base = base.base
    content = getattr(base, "obj", None)
    if isinstance(content, mmap.mmap):
        content.madvise(mmap.MADV_DONTNEED)


def _tensor(content: mmap.mmap, begin: int, entry: dict[str, Any]) -> NDArray[Any]:
    kind = np.dtype(_KINDS[entry["dtype"]]).newbyteorder("<")
    first, end = entry["data_offsets"]
    values = np.frombuffer(content, kind, (end - first) // kind.itemsize, begin + first)
    shaped: NDArray[Any] = values.reshape(entry["shape"])
    return shaped
