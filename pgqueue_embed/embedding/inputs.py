"""Sequences of token ids, framed and padded, as a network takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What a model reads around the ids of a text: special tokens, a prompt, a chat template."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of tokens in a sequence that are not the text's."""
        return len(self.before) + len(self.after)

    def around(self, ids: Sequence[int] | NDArray[np.integer]) -> Ids:
        """Return all ids that the model reads for the ids of a text, shape (tokens,)."""
        first = len(self.before)
        sequence = np.empty(self.size + len(ids), np.int64)
        sequence[:first] = self.before
        sequence[first : first + len(ids)] = ids
        sequence[first + len(ids) :] = self.after
        return sequence

    def batch(
        self, contents: Sequence[NDArray[np.integer]], length: int, padding_id: int
    ) -> tuple[Ids, Ids | None]:
        """Return ids and attention mask, as `pad`, of the ids of texts framed."""
        ids = np.full((len(contents), length), padding_id, np.int64)
        first = len(self.before)
        ids[:, :first] = self.before
        ends = np.array([first + len(content) for content in contents])
        for row, (content, end) in enumerate(zip(contents, ends.tolist(), strict=True)):
            ids[row, first:end] = content
            ids[row, end : end + len(self.after)] = self.after
        return ids, _mask(ends + len(self.after), length)


def find_frame(content: Sequence[int], sequence: Sequence[int]) -> Frame | None:
    """Return what is around ``content`` in ``sequence``, its last occurrence; None without one."""
    for start in range(len(sequence) - len(content), -1, -1):
        if list(sequence[start : start + len(content)]) == list(content):
            after = tuple(sequence[start + len(content) :])
            return Frame(before=tuple(sequence[:start]), after=after)
    return None


def pad(sequences: Sequence[Ids], length: int, padding_id: int) -> tuple[Ids, Ids | None]:
    """Return ids and attention mask, both of shape (n, length), padded on the right.

    The mask is None where nothing is padded: attention is faster without one.
    """
    ids = np.full((len(sequences), length), padding_id, np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
    return ids, _mask(np.array([len(sequence) for sequence in sequences]), length)


def _mask(lengths: Ids, length: int) -> Ids | None:
    if (lengths == length).all():
        return None
    return (np.arange(length) < lengths[:, None]).astype(np.int64)
