"""Rows as others have stored them."""

from __future__ import annotations

import re

from pgqueue_embed.pipeline.pipeline import Pipeline
from tests.support.adopting import Row
from tests.support.fakes import FakeDevice, fake_chunker
from tests.support.working import drain, open_session


def own_rows(documents: list[str]) -> list[Row]:
    """Return the chunks of `documents` as pgembed cuts them."""
    chunked = fake_chunker().chunk(documents)
    return [
        (number, chunk.text, None)
        for number, document in enumerate(chunked, start=1)
        for chunk in document.chunks
    ]


def sentence_rows(documents: list[str]) -> list[Row]:
    """Return the lines and sentences of `documents` as chunks of their own: other cuts."""
    return [
        (number, sentence, None)
        for number, document in enumerate(documents, start=1)
        for sentence in re.split(r"(?<=[.!?。！？;]) *|\n+", document)
        if sentence
    ]


def embedded_texts(conninfo: str, pipeline: Pipeline) -> list[str]:
    device = FakeDevice()
    with open_session(conninfo) as session:
        drain(session, pipeline, device)
    return device.embedded_texts
