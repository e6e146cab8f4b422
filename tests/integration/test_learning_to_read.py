"""A reader finds out what the library feeds: all samples at once, and some by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pgqueue_embed.embedding.library_network import LibraryNetwork
from pgqueue_embed.embedding.network import Fed
from pgqueue_embed.embedding.reader import TaskReader
from tests.support.opened_models import by_library, load
from tests.support.zoo import ZOO, static_model

SAMPLES = 100


@pytest.fixture
def fed_alone(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that were fed by a call of the library's public method."""
    texts: list[str] = []
    feed = LibraryNetwork.feed

    def counted(self: LibraryNetwork, task: str, text: str, prompt: str | None = None) -> Fed:
        texts.append(text)
        return feed(self, task, text, prompt)

    monkeypatch.setattr(LibraryNetwork, "feed", counted)
    return texts


def learnt(folder: Path) -> list[Any]:
    with by_library():
        model = load(folder)
    readers: list[TaskReader] = [model._documents, model._queries]
    text = "the pump"
    return [
        (each.feeding, each.overhead, each.sequence(text, each.ids_of(text)).tolist())
        for each in readers
    ]


@pytest.mark.parametrize("kind", ["bert-cls-prompts", "roberta-joining-prompt", "table"])
def test_what_a_batch_is_prepared_otherwise_for_is_fed_alone(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fed_alone: list[str]
) -> None:
    folder = static_model(tmp_path / "m") if kind == "table" else ZOO[kind].save(tmp_path / "m")
    as_usual = learnt(folder)
    assert len(fed_alone) < SAMPLES
    fed_alone.clear()
    features = LibraryNetwork.features
    monkeypatch.setattr(
        LibraryNetwork,
        "features",
        lambda self, task, texts, prompt: features(self, task, texts[::-1], prompt),
    )
    assert learnt(folder) == as_usual
    assert len(set(fed_alone)) > SAMPLES
