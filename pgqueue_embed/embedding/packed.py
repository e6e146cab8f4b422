"""Matrix products by oneDNN, of weights that are packed for it once.

On x86 torch gives products of fp32 to MKL; oneDNN's took half of the processor time on an EPYC with
AVX-512, and as much on one without. The operators are those that torch's own compiler puts into its
programs. They are not promised to users, so that whatever they raise only means: not here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

# From vectors, shape (..., inputs), to vectors, shape (..., outputs); tensors of torch.
Product = Callable[[Any], Any]

# The tracer knows no list of numbers, and takes a function that has one as a whole.
_IN_A_TRACE = """
graph(%vectors : Tensor, %packed : Tensor, %bias : Tensor?):
  %none : str = prim::Constant[value="none"]()
  %algorithm : str = prim::Constant[value=""]()
  %numbers : Scalar?[] = prim::ListConstruct()
  %found : Tensor = mkldnn::_linear_pointwise(%vectors, %packed, %bias, %none, %numbers, %algorithm)
  return (%found)
"""


def pack(weight: Any) -> Any:
    """Return a matrix, shape (outputs, inputs), as `multiply` takes it.

    Raises whatever torch raises where the processor or the library cannot.
    """
    import torch

    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)


def multiply(vectors: Any, packed: Any, bias: Any | None) -> Any:
    """Return the product of vectors, shape (..., inputs), with a packed matrix, and a sum."""
    import torch

    if torch.jit.is_tracing():
        return _in_a_trace()(vectors, packed, bias)
    return torch.ops.mkldnn._linear_pointwise(vectors, packed, bias, "none", [], "")


@cache
def _in_a_trace() -> Any:
    import torch

    graph = torch._C.parse_ir(_IN_A_TRACE)
    return torch._C._create_function_from_graph("packed_product", graph)


def packed_product(weight: Any, bias: Any | None) -> Product:
    """Return the product with ``weight``, shape (outputs, inputs), and the sum with ``bias``.

    Raises whatever torch raises where the processor or the library cannot.
    """
    packed, added = pack(weight), None if bias is None else bias.detach()
    return lambda vectors: multiply(vectors, packed, added)


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
