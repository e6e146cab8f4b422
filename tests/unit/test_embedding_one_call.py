"""A pass as one call: only where its vectors stay what they were, and nothing is held for good."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

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


def test_usual_batch_takes_twice_its_time_once_and_no_more() -> None:
    computed: list[Any] = []  # numbers, or tensors while it is traced

    def counted(
        weights: Mapping[str, torch.Tensor], ids: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        computed.append(ids.numel())
        return linear(weights, ids, mask)

    import torch

    (ids, mask), call, given = inputs(400, 10), OneCall(counted), weights()
    with torch.no_grad():
        for _ in range(USUAL_RUNS):
            computed.clear()
            call(given, ids, mask)
    assert call._calls
    assert sum(map(int, computed)) < 1.1 * ids.numel()


def test_number_too_large_of_one_text_does_not_keep_the_pass_from_being_traced() -> None:
    import torch

    call, given = OneCall(linear), weights()
    with torch.no_grad():
        given["matrix"][12] = torch.inf
        given["matrix"][34] = torch.nan
        ids, mask = inputs(6, 10)
        for _ in range(USUAL_RUNS):
            call(given, ids, mask)
        assert not linear(given, ids, mask).isfinite().all(1).all()
        assert call._calls
        torch.testing.assert_close(
            call(given, ids, mask), linear(given, ids, mask), equal_nan=True, rtol=0, atol=0
        )


def test_pass_whose_vectors_come_out_otherwise_or_not_at_all_is_not_traced() -> None:
    import torch

    def run(
        weights: Mapping[str, torch.Tensor], ids: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        vectors = linear(weights, ids, mask)
        return vectors * torch.nan if torch.jit.is_tracing() else vectors

    def without_any(
        weights: Mapping[str, torch.Tensor], ids: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        return linear(weights, ids, mask) * torch.nan

    for each in (run, without_any):
        call, given = OneCall(each), weights()
        warmed(call, given)
        assert not call._calls


def test_what_other_threads_say_of_warnings_meanwhile_holds() -> None:
    import torch

    def run(
        weights: Mapping[str, torch.Tensor], ids: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        if torch.jit.is_tracing():
            warnings.filterwarnings("ignore", message="said by another thread")
        return linear(weights, ids, mask)

    call = OneCall(run)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warmed(call, weights())
        assert len(call._calls) == 2
        warnings.warn("said by another thread", stacklevel=1)


def test_weights_are_given_back_with_the_pass() -> None:
    call, given = OneCall(linear), weights()
    warmed(call, given)
    held = weakref.ref(given["matrix"].untyped_storage())
    pointer = weakref.ref(given["matrix"])
    del call, given
    assert pointer() is None
    assert held() is None


def test_threads_that_compute_at_the_same_time_trace_a_pass_once() -> None:
    import torch

    traces: list[int] = []

    def run(
        weights: Mapping[str, torch.Tensor], ids: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        if torch.jit.is_tracing():
            traces.append(threading.get_ident())
        return linear(weights, ids, mask)

    call, given = OneCall(run), weights()
    ids, _ = inputs(6, 10)
    expected = linear(given, ids)

    def compute(_number: int) -> bool:
        with torch.no_grad():
            return torch.equal(call(given, ids), expected)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(compute, range(20 * USUAL_RUNS)))
    assert len(traces) == 1
    assert set(call._calls) == {1}
