"""A pass as one call: only where its vectors stay what they were, and nothing is held for good."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pgqueue_embed.embedding.one_call import USUAL_RUNS, OneCall

if TYPE_CHECKING:
    import torch


def linear(
    weights: Mapping[str, torch.Tensor], ids: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    shown = ids if mask is None else ids * mask
    return weights["matrix"][shown].mean(dim=1)


def inputs(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    ids = torch.arange(1, rows * length + 1).view(rows, length) % 50
    mask = torch.ones_like(ids)
    mask[::2, length // 2 :] = 0
    return ids, mask


def weights() -> dict[str, torch.Tensor]:
    import torch

    return {"matrix": torch.linspace(-1, 1, 50 * 8).view(50, 8).square().requires_grad_()}


def warmed(call: OneCall, given: Mapping[str, torch.Tensor]) -> None:
    import torch

    ids, mask = inputs(6, 10)
    with torch.no_grad():
        for _ in range(USUAL_RUNS):
            call(given, ids)
            call(given, ids, mask)


def test_traced_pass_gives_the_vectors_of_its_operations_in_any_shape() -> None:
    import torch

    call, given = OneCall(linear), weights()
    warmed(call, given)
    assert len(call._calls) == 2
    for rows, length in ((1, 1), (1, 9), (7, 3), (40, 33)):
        ids, mask = inputs(rows, length)
        for given_inputs in ((ids,), (ids, mask)):
            assert torch.equal(call(given, *given_inputs), linear(given, *given_inputs))


def test_pass_that_depends_on_its_texts_otherwise_is_not_traced() -> None:
    def by_first_text(
        weights: Mapping[str, torch.Tensor], ids: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        vectors = linear(weights, ids, mask)
        return vectors if ids.shape[1] == 10 else vectors.flip(1)

    call, given = OneCall(by_first_text), weights()
    warmed(call, given)
    assert not call._calls


def test_pass_that_cannot_be_traced_is_run_by_its_operations() -> None:
    import torch

    def untraceable(
        weights: Mapping[str, torch.Tensor], ids: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        if torch.jit.is_tracing():
            raise RuntimeError("not here")
        return linear(weights, ids, mask)

    call, given = OneCall(untraceable), weights()
    warmed(call, given)
    ids, mask = inputs(3, 5)
    assert torch.equal(call(given, ids, mask), linear(given, ids, mask))


def test_weights_are_given_back_with_the_pass() -> None:
    call, given = OneCall(linear), weights()
    warmed(call, given)
    held = weakref.ref(given["matrix"].untyped_storage())
    pointer = weakref.ref(given["matrix"])
    del call, given
    assert pointer() is None
    assert held() is None
