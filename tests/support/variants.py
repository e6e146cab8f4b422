"""A probe of the test's own: no machine tells what is fast."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from pgqueue_embed.embedding import chooser
from pgqueue_embed.embedding.precision import FP32, Variant
from pgqueue_embed.embedding.probe import Probe


def found_fastest(monkeypatch: pytest.MonkeyPatch, *variants: Variant) -> None:
    """Let every probe find these the fastest, in order, and fp32 slower than any."""
    count = len(variants)
    rates = {each: float(count - place + 1) for place, each in enumerate(variants)}

    def probe(_variants: Iterable[Variant], _device: str) -> Probe:
        return Probe(rates={FP32: 1.0, **{each: rates[each] for each in variants if each != FP32}})

    monkeypatch.setattr(chooser, "probe", probe)
