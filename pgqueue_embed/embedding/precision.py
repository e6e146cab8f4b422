"""The ways in which a device may compute a network, and those that a precision stands for.

Which is the fastest says `probe`, on the machine at hand: no flag of a processor does. bf16 ran at
a seventh of fp32's rate on an EPYC of the first generation, and at three times that on a later one.
"""

from __future__ import annotations

from dataclasses import dataclass

from pgqueue_embed.embedding.devices import kind_of
from pgqueue_embed.errors import UsageError

AUTO = "auto"
PRECISIONS = (AUTO, "fp32", "fp16", "bf16")
# Below this cosine to fp32 on the CPU, for any canary, a precision or device is not trusted.
LOWEST_COSINE = 0.999
# What differs in fp32 is rounding, unless a library was told, by its environment, to compute it in
# bf16. A search by either of its products has to find the same.
LOWEST_COSINE_OF_FP32 = 0.99999

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way to compute: in which precision, and how a network comes to it.

    In a lower precision either the ``weights`` are converted, and all that follows is computed in
    it, or torch converts what it holds for safe, by autocast. With ``packed`` weights, matrix
    products are oneDNN's; torch's own products of fp32 are MKL's on x86.
    """

    precision: str
    weights: bool = False
    packed: bool = False

    @property
    def dtype(self) -> str:
        """What torch calls the precision."""
        return _DTYPES[self.precision]

    @property
    def by_autocast(self) -> bool:
        """Whether torch converts while it computes."""
        return self.precision != "fp32" and not self.weights

    @property
    def lowest_cosine(self) -> float:
        """The least cosine of its canaries with which it is taken."""
        return LOWEST_COSINE_OF_FP32 if self == FP32_PACKED else LOWEST_COSINE

    @property
    def changes_weights(self) -> bool:
        """Whether a network has other weights for it than those that it was opened with."""
        return self.weights or self.packed

    def __str__(self) -> str:
        how = " by autocast" if self.by_autocast else " weights" if self.weights else ""
        return f"{self.precision}{how}{', oneDNN' if self.packed else ''}"


FP32 = Variant(precision="fp32")
FP32_PACKED = Variant(precision="fp32", packed=True)
BF16 = Variant(precision="bf16")
BF16_WEIGHTS = Variant(precision="bf16", weights=True)
BF16_PACKED = Variant(precision="bf16", weights=True, packed=True)
FP16 = Variant(precision="fp16")
FP16_WEIGHTS = Variant(precision="fp16", weights=True)

# What `auto` may take. In each, the exact and simple ones come first: of two that are equally fast,
# the first is taken.
_ON_CPU = (FP32, FP32_PACKED, BF16, BF16_WEIGHTS, BF16_PACKED)
_ON_GPU = (FP32, FP16, BF16, FP16_WEIGHTS, BF16_WEIGHTS)
_ASKED_FOR = {"fp32": (FP32,), "fp16": (FP16_WEIGHTS,), "bf16": (BF16,)}
# Both are as exact.
_ASKED_FOR_ON_CPU = {**_ASKED_FOR, "fp32": (FP32, FP32_PACKED)}


def check_precision(requested: str) -> None:
    """Raise UsageError for a precision that there is not."""
    if requested not in PRECISIONS:
        raise UsageError(f"unknown precision {requested!r}: give one of {', '.join(PRECISIONS)}")


def candidates(device: str, requested: str) -> tuple[Variant, ...]:
    """Return the variants that a precision stands for on a device, the most exact first.

    Raises UsageError for a precision that there is not.
    """
    check_precision(requested)
    is_cpu = kind_of(device) == "cpu"
    if requested != AUTO:
        return (_ASKED_FOR_ON_CPU if is_cpu else _ASKED_FOR)[requested]
    return _ON_CPU if is_cpu else _ON_GPU


def disagreement(device: str, variant: Variant, cosine: float) -> str:
    """Return the sentence that says why a variant was not taken."""
    return (
        f"{variant} on {device} does not agree with fp32 on the CPU "
        f"(lowest cosine {cosine:.5f}, needed {variant.lowest_cosine})"
    )
