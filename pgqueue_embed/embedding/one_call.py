"""A pass of hundreds of operations as one call of torch's, as far as Python can tell.

A thread has to have the interpreter back behind each operation, and while another one cuts texts it
waits for that up to five milliseconds: a pass that a GPU computes in tens of milliseconds is
launched in hundreds (python -m benchmarks --only launches). What torch has traced is run without
the interpreter. torch is to give its tracer up one day, so that whatever it raises only means: not
here.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pgqueue_embed.embedding.probe import in_a_line
from pgqueue_embed.log import get_logger

if TYPE_CHECKING:
    import torch

    Weights = Mapping[str, torch.Tensor]
    # From ids and, where some are padding, a mask, of shape (n, length), to vectors, shape
    # (n, dimensions); a pass is given its weights first.
    Call = Callable[..., torch.Tensor]

# To trace a pass takes as long as some, and a start of a worker or of a search has few.
USUAL_RUNS = 8
# Of the vectors of two runs; those of a GPU may differ by rounding.
SAME_COSINE = 0.9999


class OneCall:
    """Runs a pass by its operations at first, and as one call once it is usual.

    A pass with a mask and one without are two. The weights are to be the same at each call.
    """

    def __init__(self, run: Call) -> None:
        self._run = run
        self._runs: Counter[int] = Counter()
        self._calls: dict[int, Call] = {}

    def __call__(self, weights: Weights, *inputs: torch.Tensor) -> torch.Tensor:
        """Return the vectors of texts, as the pass does that it was made of."""
        kind = len(inputs)
        self._runs[kind] += 1
        if self._runs[kind] == USUAL_RUNS:
            self._trace(weights, *inputs)
        call = self._calls.get(kind)
        return self._run(weights, *inputs) if call is None else call(*inputs)

    def _trace(self, weights: Weights, *inputs: torch.Tensor) -> None:
        """Use a traced pass from now on, if its vectors are those of the operations."""
        smaller = [each[: -(-len(each) // 2), : -(-each.shape[1] // 2)] for each in inputs]
        try:
            call = _traced(self._run, weights, inputs)
            if all(_agree(self._run(weights, *some), call(*some)) for some in (inputs, smaller)):
                self._calls[len(inputs)] = call
        except Exception as error:  # noqa: BLE001 - the operations by themselves do as well
            get_logger().debug("pass not traced", reason=in_a_line(error))


def _traced(run: Call, weights: Weights, inputs: tuple[torch.Tensor, ...]) -> Call:
    import torch

    names, values = list(weights), [weight.detach() for weight in weights.values()]

    # What torch has traced stays in memory for good, so that it must not hold the weights.
    def run_by(*given: torch.Tensor) -> torch.Tensor:
        return run(dict(zip(names, given, strict=False)), *given[len(names) :])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(run_by, (*values, *inputs), check_trace=False)

    def call(*given: torch.Tensor) -> torch.Tensor:
        # Operations are neither fused nor compiled anew for each shape.
        with torch.jit.optimized_execution(False):
            vectors: torch.Tensor = traced(*values, *given)
        return vectors

    return call


def _agree(one: torch.Tensor, other: torch.Tensor) -> bool:
    import torch

    cosines = torch.nn.functional.cosine_similarity(one.float(), other.float())
    return bool(cosines.min() >= SAME_COSINE)
