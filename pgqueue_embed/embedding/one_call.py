"""A pass of hundreds of operations as one call of torch's, as far as Python can tell.

A thread has to have the interpreter back behind each operation, and while another one cuts texts it
waits for that up to five milliseconds: beside two such threads a pass took seven times as long to
launch (python -m benchmarks --only launches). What torch has traced is run without the interpreter.
torch is to give its tracer up one day, so that whatever it raises only means: not here.
"""

from __future__ import annotations

import threading
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
FEW_TEXTS = 2
# Of the vectors of two runs; those of a GPU may differ by rounding.
SAME_COSINE = 0.9999


class OneCall:
    """Runs a pass by its operations at first, and as one call once it is usual.

    A pass with a mask and one without are two. The weights are to be the same at each call. Safe to
    use from many threads.
    """

    def __init__(self, run: Call) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._runs: Counter[int] = Counter()
        self._calls: dict[int, Call] = {}

    def __call__(self, weights: Weights, *inputs: torch.Tensor) -> torch.Tensor:
        """Return the vectors of texts, as the pass does that it was made of."""
        kind = len(inputs)
        call = self._calls.get(kind)
        if call is not None:
            return call(*inputs)
        vectors = self._run(weights, *inputs)
        with self._lock:
            self._runs[kind] += 1
            is_usual_now = self._runs[kind] == USUAL_RUNS
        if is_usual_now:
            self._trace(weights, inputs, vectors)
        return vectors

    def _trace(
        self, weights: Weights, inputs: tuple[torch.Tensor, ...], vectors: torch.Tensor
    ) -> None:
        """Use a traced pass from now on, if its vectors are those of the operations.

        Traced for a few texts, those with most padding: a large batch takes long enough once more.
        """
        few = tuple(each[-FEW_TEXTS:] for each in inputs)
        other = tuple(each[:, : -(-each.shape[1] // 2)].repeat(2, 1) for each in few)
        try:
            call = _traced(self._run, weights, few)
            if _agree(call(*inputs), vectors) and _agree(call(*other), self._run(weights, *other)):
                self._calls[len(inputs)] = call
        except Exception as error:  # noqa: BLE001 - the operations by themselves do as well
            get_logger().debug("pass not traced", reason=in_a_line(error))


def _traced(run: Call, weights: Weights, inputs: tuple[torch.Tensor, ...]) -> Call:
    import torch

    names, values = list(weights), [weight.detach() for weight in weights.values()]

    # What torch has traced stays in memory for good, so that it must not hold the weights.
    def run_by(*given: torch.Tensor) -> torch.Tensor:
        return run(dict(zip(names, given, strict=False)), *given[len(names) :])

    _ignore_advice()
    traced = torch.jit.trace(run_by, (*values, *inputs), check_trace=False)

    def call(*given: torch.Tensor) -> torch.Tensor:
        # Operations are neither fused nor compiled anew for each shape.
        with torch.jit.optimized_execution(False):
            vectors: torch.Tensor = traced(*values, *given)
        return vectors

    return call


def _ignore_advice() -> None:
    """Keep from a user's screen what torch says of a trace made here.

    For good: `warnings.catch_warnings` would undo what other threads say of warnings meanwhile.
    """
    import torch

    warnings.filterwarnings("ignore", r"`torch\.jit\.trace` is", DeprecationWarning)
    warnings.filterwarnings(
        "ignore", category=torch.jit.TracerWarning, module=r"pgqueue_embed\.embedding\."
    )


def _agree(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether vectors are the same, but for texts of which neither has any.

    A number of such a text has grown too large for the precision.
    """
    import torch

    there = one.isfinite().all(dim=1) | other.isfinite().all(dim=1)
    cosines = torch.nn.functional.cosine_similarity(one[there].float(), other[there].float())
    return len(cosines) > 0 and bool(cosines.min() >= SAME_COSINE)
