"""The server gathers queries into rounds, and computes some of these beside one another."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from random import Random
from typing import Any

import numpy as np
import pytest

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding import DeviceThread
from pgqueue_embed.embedding.reads import Awaited
from pgqueue_embed.errors import ModelError, UsageError
from pgqueue_embed.search_server.query_batches import (
    GATHER_SHARE,
    LEAST_GATHER_SHARE,
    MOST_GATHER_SECONDS,
    TEXTS_OF_A_REQUEST,
    Encoded,
    Gathering,
    QueryBatches,
)
from tests.support.conditions import wait_until
from tests.support.fakes import unit_vector
from tests.support.serving import BREAKING, TOO_LONG, FakeQueryModel

PASSES = 3


class PassesOfAPool(FakeQueryModel):
    """Computes as many batches at once as a CPU with so many cores."""

    passes_at_once = PASSES

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        super().__init__()
        self._pool = pool

    def launch(self, chunks: Sequence[Chunk], *, length: int | None = None) -> Awaited[Any]:
        compute = super().launch
        done = self._pool.submit(lambda: compute(chunks, length=length)())
        return Awaited(wait=done.result, done=done)


@pytest.fixture
def model() -> Iterator[PassesOfAPool]:
    with ThreadPoolExecutor(PASSES) as pool:
        yield PassesOfAPool(pool)


@pytest.fixture
def batches(model: PassesOfAPool) -> Iterator[QueryBatches]:
    device: DeviceThread[Any] = DeviceThread(lambda: model, cache_bytes=0)
    with closing(QueryBatches(device)) as found:
        yield found


def test_waiting_is_for_those_who_come_back_and_little_for_those_who_do_not() -> None:
    gathering = Gathering(expected=32, round_seconds=0.2)
    assert gathering.patience_seconds == GATHER_SHARE * 0.2
    for _ in range(9):
        gathering = gathering.waited(before=19, after=22)  # of 13, ten search in between
    assert gathering.share == LEAST_GATHER_SHARE
    assert gathering.waited(before=32, after=33) == gathering, "nobody was waited for"
    for _ in range(9):
        gathering = gathering.waited(before=2, after=30)
    assert gathering.share == GATHER_SHARE
    assert Gathering(expected=64, round_seconds=60).patience_seconds == MOST_GATHER_SECONDS
    assert Gathering().patience_seconds == 0, "a first query waits for nobody"


def test_a_query_that_comes_while_others_are_computed_begins_beside_them(
    model: PassesOfAPool, batches: QueryBatches
) -> None:
    model.hold = threading.Event()
    try:
        found = []
        for number in range(PASSES):
            found.append(batches.submit([f"query {number}"]))
            wait_until(lambda: len(model.batches) == len(found), "it has begun")
    finally:
        model.hold.set()
    for number, each in enumerate(found):
        assert np.array_equal(each.result(30).vectors, [unit_vector(f"query {number}")])


def _asked(batches: QueryBatches, client: int) -> list[tuple[list[str], Future[Encoded]]]:
    """Ask for texts of all numbers, of some of which one breaks, and leave some of them."""
    random, asked = Random(client), []
    for number in range(12):
        count = random.choice((1, 1, 2, TEXTS_OF_A_REQUEST, TEXTS_OF_A_REQUEST + 1, 70))
        texts = [f"client {client} request {number} text {n}" for n in range(count)]
        if number % 4 == 3:
            texts[random.randrange(count)] += f" {random.choice((BREAKING, TOO_LONG))}"
        future = batches.submit(texts)
        if number % 5 == 4:
            future.cancel()
        elif number % 3:
            future.exception(30)
        asked.append((texts, future))
    return asked


def test_each_request_has_its_own_vectors_in_order_whatever_becomes_of_others(
    batches: QueryBatches,
) -> None:
    with ThreadPoolExecutor() as clients:
        asked = [*clients.map(lambda client: _asked(batches, client), range(2 * PASSES))]
    for texts, future in (each for of_client in asked for each in of_client):
        if future.cancelled():
            continue
        if any(word in text for text in texts for word in (BREAKING, TOO_LONG)):
            assert isinstance(future.exception(30), ModelError | UsageError)
        else:
            assert np.array_equal(future.result(30).vectors, [unit_vector(text) for text in texts])
    wait_until(lambda: not (batches._computing or batches._requests), "all rounds have ended")
    wait_until(lambda: batches._waiting_texts == 0, "nothing waits")
