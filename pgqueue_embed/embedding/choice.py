"""The variant that was chosen, and the others that were tried, for the person at the screen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pgqueue_embed.embedding.precision import FP32, Variant, disagreement
from pgqueue_embed.embedding.probe import Rates, in_a_line

# A variant that the probe found half as fast is not the faster one on real batches either.
_IN_REACH = 0.5


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A variant, and the rates by which it was chosen; none where it was asked for.

    ``refused`` were faster, and their canaries did not agree, or they failed. With ``is_confirmed``
    real batches have been faster in it than in the next one.
    """

    variant: Variant = FP32
    rates: Rates = field(default_factory=dict)
    refused: tuple[Variant, ...] = ()
    is_confirmed: bool = False

    @property
    def rival(self) -> Variant | None:
        """The next fastest one, if real batches may prove it to be faster; else None."""
        if self.is_confirmed or self.variant not in self.rates:
            return None
        least = _IN_REACH * self.rates[self.variant]
        rates = {each: rate for each, rate in self.rates.items() if rate >= least}
        others = [each for each in rates if each != self.variant and each not in self.refused]
        return max(others, key=rates.__getitem__, default=None)

    @property
    def others(self) -> str:
        """The other variants with their shares of the chosen one's rate, the fastest first."""
        own = self.rates.get(self.variant)
        shares = (
            sorted(
                ((rate / own, each) for each, rate in self.rates.items() if each != self.variant),
                key=lambda share: -share[0],
            )
            if own
            else []
        )
        return "; ".join(
            f"{each} {share:.2f}{' (refused)' if each in self.refused else ''}"
            for share, each in shares
        )

    def __str__(self) -> str:
        return f"{self.variant} (of its rate: {self.others})" if self.others else str(self.variant)


def first_that_agrees(
    variants: Sequence[Variant], device: str, cosine_of: Callable[[Variant], float]
) -> tuple[Variant | None, dict[Variant, str]]:
    """Return the first variant whose canaries agree, and the reasons against those before it.

    ``cosine_of`` gives the lowest cosine of the canaries to fp32 on the CPU; whatever it raises is
    a reason, too.
    """
    refused: dict[Variant, str] = {}
    for variant in variants:
        try:
            cosine = cosine_of(variant)
        except Exception as error:  # noqa: BLE001 - of torch or a library; the next one may do
            refused[variant] = f"{variant} on {device} fails: {in_a_line(error)}"
            continue
        if cosine >= variant.lowest_cosine:
            return variant, refused
        refused[variant] = disagreement(device, variant, cosine)
    return None, refused
