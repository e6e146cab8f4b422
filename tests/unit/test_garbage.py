"""Programs of ours look for garbage seldom, from their first line on."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest

import pgqueue_embed.__main__
import pgqueue_embed.bench.process
import pgqueue_embed.worker.process
from pgqueue_embed.embedding.devices import release_memory
from pgqueue_embed.garbage import OBJECTS_BEFORE_A_LOOK, USUAL, collect_seldom
from pgqueue_embed.web_server import Listening, serve
from pgqueue_embed.web_server.answers import App


class Begun(Exception):
    """The program has come to its first line."""


@pytest.fixture(autouse=True)
def usual_threshold() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


@pytest.mark.parametrize(
    ("program", "first"),
    [
        (pgqueue_embed.__main__.command, "pgqueue_embed.__main__._End"),
        (pgqueue_embed.worker.process.main, "pgqueue_embed.worker.process.sys"),
        (pgqueue_embed.bench.process.main, "pgqueue_embed.bench.process.sys"),
    ],
)
def test_programs_look_for_garbage_seldom(
    program: Callable[[], None], first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class First:
        def __init__(self, *_: object) -> None:
            raise Begun

        def __getattr__(self, _name: str) -> object:
            raise Begun

    monkeypatch.setattr(first, First.__new__(First) if first.endswith(".sys") else First)
    with pytest.raises(Begun):
        program()
    assert gc.get_threshold()[0] == OBJECTS_BEFORE_A_LOOK


def test_servers_look_for_garbage_as_usual() -> None:
    """An error keeps the frames that it went through, and they the bodies of requests."""

    def begin(_url: str) -> App:
        raise Begun

    collect_seldom()
    with pytest.raises(Begun):
        serve(begin, Listening(port=0), name="serve")
    assert gc.get_threshold() == USUAL


def test_out_of_memory_is_answered_by_a_look() -> None:
    class Holder:
        me: Holder

    holder = Holder()
    holder.me, held = holder, weakref.ref(holder)
    del holder
    release_memory("cpu")
    assert held() is None
