"""Matrix products by oneDNN, of weights that are packed for it once.

On x86 torch gives products of fp32 to MKL; oneDNN's took half of the processor time on an EPYC with
AVX-512, and as much on one without. The operators are those that torch's own compiler puts into its
programs. They are not promised to users, so that whatever they raise only means: not here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# From vectors, shape (..., inputs), to vectors, shape (..., outputs); tensors of torch.
Product = Callable[[Any], Any]


def packed_product(weight: Any, bias: Any | None) -> Product:
    """Return the product with ``weight``, shape (outputs, inputs), and the sum with ``bias``.

    Raises whatever torch raises where the processor or the library cannot.
    """
    import torch

    own = weight.detach().contiguous()
    packed = torch.ops.mkldnn._reorder_linear_weight(own, None)
    added = None if bias is None else bias.detach()
    multiply = torch.ops.mkldnn._linear_pointwise

    def product(vectors: Any) -> Any:
        return multiply(vectors, packed, added, "none", [], "")

    return product


def pack_modules(network: Any) -> None:
    """Let every linear layer of a network of torch multiply by oneDNN.

    Their own weights are given up, since two copies might be more than the memory holds, but for
    those that a layer shares with another part.
    """
    import torch

    modules = list(network.modules())
    owners = [id(own) for each in modules for own in vars(each)["_parameters"].values()]
    for module in modules:
        if type(module) is torch.nn.Linear and owners.count(id(module.weight)) == 1:
            module.forward = packed_product(module.weight, module.bias)
            module.weight.data = module.weight.data.new_empty(0)
