"""A network on a device, ready to compute in one variant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from pgqueue_embed.embedding.devices import kind_of
from pgqueue_embed.embedding.network import Network
from pgqueue_embed.embedding.precision import FP32, Variant


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where and how a network computes; as it was opened, on the CPU in fp32."""

    network: Network
    device: str = "cpu"
    variant: Variant = FP32

    @contextmanager
    def session(self) -> Iterator[None]:
        """Hold this open around many calls of one thread, so that autocast casts weights once."""
        import torch

        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            kind, wanted = kind_of(self.device), self.variant.by_autocast
            if wanted or torch.is_autocast_enabled(kind):
                dtype = getattr(torch, self.variant.dtype) if wanted else None
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=wanted))
            yield


def place(network: Network, device: str, variant: Variant) -> Placement:
    """Make a network, as it was opened or moved since, ready for a device and a variant.

    If it raises anything, the network is of no use any more.
    """
    if variant.weights:
        network.convert(variant.dtype)
    if variant.packed:
        network.pack()
    network.to(device)
    return Placement(network=network, device=device, variant=variant)
