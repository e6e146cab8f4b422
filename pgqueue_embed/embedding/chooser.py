"""Chooses the variant that a model computes in on this machine: remembered, or found by a probe."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from pgqueue_embed.embedding.choice import Choice
from pgqueue_embed.embedding.devices import describe_device, describe_processor, kind_of
from pgqueue_embed.embedding.learnt import Learnt, Memory
from pgqueue_embed.embedding.precision import FP32, Variant
from pgqueue_embed.embedding.probe import Rates, probe, ranked
from pgqueue_embed.embedding.shapes import SIZES_OF, BatchLimits


class Chooser:
    """What is known of one model on one device, for the precision that was asked for.

    ``order`` are the variants to try: the first that agrees is taken. ``choice`` is what came of
    it. What is learnt is kept in a ``memory``; without one it is not, and nothing is recalled.
    """

    def __init__(
        self, variants: Sequence[Variant], device: str, *, memory: Memory | None, key: str
    ) -> None:
        self.choice = Choice()
        self._device = device
        self._memory = memory
        self._key = key
        self._learnt = memory.recall(key) if memory else None
        self._refused = memory.refused(key) if memory else ()
        self.order: list[Variant] = list(variants)
        self._rates: Rates = {}
        if len(variants) > 1:
            self._rank(variants)

    def _rank(self, variants: Sequence[Variant]) -> None:
        """Order variants by what was learnt of them, or else by what a probe tells now."""
        by_name = {str(each): each for each in variants}
        first = by_name.get(self._learnt.variant) if self._learnt else None
        if self._learnt is None or first is None:
            self._learnt = None
            self._rates = probe(tuple(variants), self._device).rates
        else:
            rates = self._learnt.rates
            self._rates = {each: rates[name] for name, each in by_name.items() if name in rates}
        found = [*ranked(self._rates), FP32]
        # What was refused is better than nothing: where fp32 fails on a device.
        found.sort(key=lambda each: str(each) in self._refused)
        self.order = list(dict.fromkeys(found if first is None else [first, *found]))

    def settle(self, variant: Variant, refused: Iterable[Variant]) -> None:
        """Take note of the variant that is used, and of others that did not agree.

        What was refused before stays so, until it is used: a text may have told.
        """
        known = self._learnt
        names = {*map(str, refused), *self._refused} - {str(variant)}
        self._refused = tuple(names)
        self.choice = Choice(
            variant=variant,
            rates=self._rates,
            refused=tuple(each for each in self._rates if str(each) in names),
            is_confirmed=known is not None and known.is_confirmed and known.variant == str(variant),
        )

    def confirm(self) -> None:
        """Take note that real batches have decided for the variant that is used."""
        self.choice = replace(self.choice, is_confirmed=True)
        self.keep()

    def keep(self, batch_tokens: int | None = None) -> None:
        """Keep what is known by now, and the size of batches that real ones have told."""
        if self._memory is None:
            return
        known = self._learnt or Learnt(variant=str(self.choice.variant))
        refused = tuple(map(str, self.choice.refused))
        self._learnt = replace(
            known,
            variant=str(self.choice.variant),
            rates={str(each): rate for each, rate in self._rates.items()},
            refused=refused,
            is_confirmed=self.choice.is_confirmed,
            batch_tokens=batch_tokens or known.batch_tokens,
            # What is refused is so for days, however long the rest has been known.
            learnt_at=known.learnt_at if set(refused) <= set(known.refused) else time.time(),
        )
        self._memory.keep(self._key, self._learnt)

    def sized(self, limits: BatchLimits) -> BatchLimits:
        """Return limits with the size that was learnt, or those that are to be tried."""
        if self._learnt is not None and self._learnt.batch_tokens is not None:
            return limits.settled(self._learnt.batch_tokens)
        sizes = SIZES_OF[kind_of(self._device)] if self._memory else ()
        return replace(limits, sizes_to_try=sizes)


def learnt_key(device: str, requested: str, digest: str) -> str:
    """Return the name of what is learnt of a model, of this digest, on this machine."""
    import torch

    parts = (
        platform.node(),
        describe_device(device),
        describe_processor(),
        f"{torch.get_num_threads()} threads",
        f"torch {torch.__version__}",
        requested,
        digest,
    )
    return " | ".join(parts)
