"""The weights of a stack of BERT or a relative of it in torch, and where they lie.

Not imported before a model is opened: torch takes a second.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from weakref import ref

import torch
from numpy.typing import NDArray

from pgqueue_embed.embedding.light_files import Dense, Stack
from pgqueue_embed.embedding.mapped_weights import let_go
from pgqueue_embed.embedding.network_plan import DISTANCES, POSITIONS, TYPES, WORDS
from pgqueue_embed.embedding.one_call import OneCall
from pgqueue_embed.embedding.packed import pack
from pgqueue_embed.embedding.torch_pass import TorchPass

_LOOKED_UP = {f"{name}.weight" for name in (WORDS, POSITIONS, TYPES, DISTANCES)}


class TorchNetwork:
    """All that makes vectors of ids. Weights are in fp32 on the CPU until they are moved.

    Those of the file are used where they lie: a page is read when it is first used.
    """

    def __init__(self, stack: Stack) -> None:
        # Of the stack no more: what it has read of the file lies there once more.
        self._pass = partial(TorchPass, plan=stack.plan, pooling=stack.pooling, after=stack.after)
        # It is there as long as a weight is used where it lies in the file.
        self._in_file = ref(stack.weights[f"{WORDS}.weight"])
        self._weights = {name: _weight(stack.weights[name]) for name in stack.plan.shapes()}
        self._one_call = self._new_call()
        for number, step in enumerate(stack.after):
            if isinstance(step, Dense):
                self._weights |= _dense(str(number), step)

    def to(self, **target: Any) -> None:
        """Move the weights to a ``device``, or convert them to a ``dtype``."""
        self._weights = {
            name: weight.detach().to(**target).requires_grad_()
            for name, weight in self._weights.items()
        }
        self._one_call = self._new_call()

    def pack(self) -> None:
        """Multiply by oneDNN from now on, and give up the weights that are packed for it."""
        for name, weight in self._weights.items():
            if weight.dim() == 2 and name not in _LOOKED_UP:
                self._weights[name] = pack(weight)
        self._pass = partial(self._pass, is_packed=True)
        self._one_call = self._new_call()
        if (in_file := self._in_file()) is not None:
            let_go(in_file)

    def vectors(self, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the vectors of texts, shape (n, dimensions).

        ``ids`` and ``mask`` have shape (n, length), padded on the right; without padding the mask
        is None: attention is faster so.
        """
        # Autocast keeps what it has cast among passes.
        if torch.is_autocast_enabled(ids.device.type):
            return self.by_operations(ids, mask)
        return self.in_one_call(ids, mask)

    def by_operations(self, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the vectors, each operation called from Python."""
        return self._pass(weights=self._weights).vectors(ids, mask)

    def in_one_call(self, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the vectors, by one call once it is usual."""
        inputs = (ids,) if mask is None else (ids, mask)
        return self._one_call(self._weights, *inputs)

    def _new_call(self) -> OneCall:
        # It must not hold this network, whose weights are to go with it at once.
        start = self._pass
        return OneCall(lambda weights, *inputs: start(weights=weights).vectors(*inputs))


def _weight(array: NDArray[Any]) -> torch.Tensor:
    # A leaf that could be trained: of such alone autocast keeps its casts.
    return torch.from_numpy(array).to(torch.float32).requires_grad_()


def _dense(name: str, layer: Dense) -> dict[str, torch.Tensor]:
    # Copied, as the library does: where a matrix lies decides how a product of one row is rounded.
    weights = {f"{name}.weight": _weight(layer.weight.copy())}
    if layer.bias is not None:
        weights[f"{name}.bias"] = _weight(layer.bias.copy())
    return weights
