"""Copies between the host and a device. Those of CUDA wait for nothing but themselves.

A plain copy of torch waits until CUDA has done all that it was given before, so that nothing could
be launched ahead. Those from and to pinned memory need not. Metal's copies stay plain: it has given
wrong numbers for others (pytorch#139550).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pgqueue_embed.embedding.devices import kind_of

if TYPE_CHECKING:
    import torch

Raw = NDArray[np.float32]


def to_device(array: NDArray[Any], device: str) -> torch.Tensor:
    """Return an array of the host as a tensor on ``device``, with the same shape and type."""
    import torch

    tensor = torch.from_numpy(array)
    if kind_of(device) != "cuda":
        return tensor.to(device)
    # torch keeps pinned memory until the copy from it has been made.
    return tensor.pin_memory().to(device, non_blocking=True)


def reading(vectors: Any) -> Callable[[], Raw]:
    """Begin to copy vectors, float32, to the host; returns what waits for them and gives them.

    An array is returned as it is: some networks compute in numpy.
    """
    if isinstance(vectors, np.ndarray):
        return lambda: vectors
    if vectors.device.type != "cuda":
        return lambda: _array(vectors.cpu())
    import torch

    host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
    host.copy_(vectors, non_blocking=True)
    # Whoever waits for it sleeps: threads that cut texts want the core.
    copied = torch.cuda.Event(blocking=True)
    copied.record(torch.cuda.current_stream(vectors.device))

    def read() -> Raw:
        copied.synchronize()
        return _array(host)

    return read


def on_host(vectors: Any) -> Raw:
    """Return vectors as an array in the host's memory; waits for the device if they are there."""
    return reading(vectors)()


def _array(tensor: torch.Tensor) -> Raw:
    array: Raw = tensor.numpy()
    return array
