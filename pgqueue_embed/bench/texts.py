"""Texts that every machine has, and none of them twice: sentences of Python's own reference."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import cache

# As long as reports that people write, from a note to a page.
SHORTEST_CHARACTERS, LONGEST_CHARACTERS = 200, 3_000

_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_FEWEST_CHARACTERS, _MOST_CHARACTERS = 30, 400


def documents(seed: int = 0) -> Iterator[str]:
    """Yield texts without end, the same on every machine with this Python.

    Sentences come in an order of their own in each, so that hardly a chunk occurs twice, which a
    worker would compute once.
    """
    drawn = random.Random(seed)
    while True:
        wanted = drawn.uniform(SHORTEST_CHARACTERS, LONGEST_CHARACTERS)
        parts: list[str] = []
        while sum(map(len, parts)) < wanted:
            parts.append(drawn.choice(_sentences()))
        yield " ".join(parts)


@cache
def _sentences() -> tuple[str, ...]:
    from pydoc_data.topics import topics

    whole = " ".join(text for _, text in sorted(topics.items()))
    found = (" ".join(each.split()) for each in _SENTENCE.split(whole))
    return tuple(
        sorted({each for each in found if _FEWEST_CHARACTERS <= len(each) <= _MOST_CHARACTERS})
    )
