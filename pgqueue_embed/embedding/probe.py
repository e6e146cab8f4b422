"""Times the variants on the machine at hand: some matrix products of each, in turns.

A block as in any transformer is computed, of two products and what is between them, so that what a
variant converts on the way counts. It takes some tenths of a second; real batches have the last
word (`contest`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pgqueue_embed.embedding.devices import kind_of, release_memory
from pgqueue_embed.embedding.packed import Product, packed_product
from pgqueue_embed.embedding.precision import FP32, Variant
from pgqueue_embed.embedding.working_clock import Clock, working_clock

WIDTH, INNER_WIDTH = 512, 2_048
# A GPU needs more of them to be busy; and a pass is over before a clock tells.
TOKENS = {"cpu": 64, "mps": 8_192, "cuda": 8_192}
PASSES = {"cpu": 1, "mps": 2, "cuda": 8}

BUDGET_SECONDS = 0.2
ROUNDS = 9
FEWEST_ROUNDS = 3
HOPELESS = 3.0  # so many times as slow as the fastest: not timed again

# The exact and simple one wins within noise, and less than this is no reason to change.
AS_GOOD = 0.9

Rates = Mapping[Variant, float]
Pass = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The blocks a second of each variant, and why those have none that cannot be computed."""

    rates: Rates
    failures: Mapping[Variant, str] = field(default_factory=dict)


@cache
def probe(variants: tuple[Variant, ...], device: str) -> Probe:
    """Time the variants on a device of this machine, which computes nothing else meanwhile.

    A process does so once: it is of no model.
    """
    passes: dict[Variant, Pass] = {}
    failures: dict[Variant, str] = {}
    with working_clock(device) as clock:
        for variant in variants:
            try:
                passes[variant] = _prepared(variant, device)
            except Exception as error:  # noqa: BLE001 - each of torch's means that it is not here
                failures[variant] = in_a_line(error)
        seconds = time_in_turns(passes, clock=clock)
    release_memory(device)
    return Probe(rates={each: 1 / min(took) for each, took in seconds.items()}, failures=failures)


def ranked(rates: Rates) -> list[Variant]:
    """Return those worth a try, in order; ``rates`` has them from the most exact on, fp32 first.

    Each is the most exact one that is about as fast as the fastest of those that are left. Nothing
    comes behind fp32, which needs no other reason to be taken.
    """
    left = list(rates)
    order: list[Variant] = []
    while left and FP32 not in order:
        fastest = max(rates[variant] for variant in left)
        order.append(next(each for each in left if rates[each] >= AS_GOOD * fastest))
        left.remove(order[-1])
    return order


def time_in_turns(passes: Mapping[Variant, Pass], *, clock: Clock) -> dict[Variant, list[float]]:
    """Return the seconds of each pass by variant; what else the machine does hits all alike."""
    seconds: dict[Variant, list[float]] = {variant: [] for variant in passes}
    for turn in range(ROUNDS):
        if turn >= FEWEST_ROUNDS and sum(map(sum, seconds.values())) > BUDGET_SECONDS:
            break
        for variant in _worth_a_turn(seconds):
            started = clock()
            passes[variant]()
            seconds[variant].append(max(clock() - started, 1e-9))
    return seconds


def _worth_a_turn(seconds: Mapping[Variant, Sequence[float]]) -> list[Variant]:
    best = min((min(took) for took in seconds.values() if took), default=0.0)
    return [each for each, took in seconds.items() if not took or min(took) <= HOPELESS * best]


def in_a_line(error: Exception) -> str:
    """Return what an error says first."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def _prepared(variant: Variant, device: str) -> Pass:
    """Return what computes the block, once done, so that all is loaded and compiled for it."""
    import torch
    from torch.nn import functional

    kind = kind_of(device)
    low = getattr(torch, variant.dtype)
    # What is between the products stays in fp32 where torch converts by autocast.
    between = torch.float32 if variant.by_autocast else low
    vectors = torch.full((TOKENS[kind], WIDTH), 0.01, device=device, dtype=between)
    scale = torch.ones(WIDTH, device=device, dtype=between)
    widen, narrow = (
        _product(torch.full(shape, 0.01, device=device, dtype=low), variant)
        for shape in ((INNER_WIDTH, WIDTH), (WIDTH, INNER_WIDTH))
    )

    def compute() -> None:
        with torch.no_grad():
            for _ in range(PASSES[kind]):
                found = narrow(functional.gelu(widen(vectors.to(low))))
                functional.layer_norm(found + vectors, (WIDTH,), scale, None)

    compute()
    return compute


def _product(matrix: Any, variant: Variant) -> Product:
    from torch.nn import functional

    if variant.packed:
        return packed_product(matrix, None)
    return lambda vectors: functional.linear(vectors, matrix)
