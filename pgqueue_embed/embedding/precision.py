"""Chooses the number format that a device computes in, fastest first."""

from __future__ import annotations

from pgqueue_embed.embedding.devices import kind_of
from pgqueue_embed.errors import UsageError

# Why these and no others on a CPU. Without AMX, bf16 runs at a seventh of fp32's rate, and
# torch.compile gained 3 % for a minute of compiling. ONNX Runtime and OpenVINO took 1/1.15 and
# 1/1.18 of torch's processor time in fp32 (`python -m benchmarks --only engines`): below 1.3 they
# are not worth a second copy of the weights and an engine of their own. With AMX, bf16 by autocast
# was seen at three times fp32's rate, its canaries at cosine 0.9999; with bf16 weights they fell to
# 0.9965. `python -m benchmarks --only device` measures the machine at hand.
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
# Below this cosine to fp32 on the CPU, for any canary, a precision or device is not trusted.
LOWEST_COSINE = 0.999


def candidates(device: str, requested: str) -> tuple[str, ...]:
    """Return the precisions to try on a device, in order; the first that agrees is taken.

    mps and cuda get fp16 (bf16 runs at half its rate on an M1), a CPU with AMX gets bf16, and
    all end with fp32. An explicit request is the only candidate.
    """
    if requested not in PRECISIONS:
        raise UsageError(f"unknown precision {requested!r}: give one of {', '.join(PRECISIONS)}")
    if requested != "auto":
        return (requested,)
    if kind_of(device) in ("mps", "cuda"):
        return ("fp16", "fp32")
    return ("bf16", "fp32") if _has_amx() else ("fp32",)


def _has_amx() -> bool:
    import torch

    for probe in ("_is_amx_bf16_supported", "_is_amx_tile_supported"):
        supported = getattr(torch.cpu, probe, None)
        if supported is not None:
            return bool(supported())
    return False


def disagreement(device: str, precision: str, cosine: float) -> str:
    """Return the sentence that says why a precision was not taken."""
    return (
        f"{precision} on {device} does not agree with fp32 on the CPU "
        f"(lowest cosine {cosine:.4f}, needed {LOWEST_COSINE})"
    )
