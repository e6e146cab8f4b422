"""Model input from the ids of a chunk: [CLS] prompt chunk [SEP], padded to one length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pgqueue_embed.chunking import Chunk

_PROBE = "pump"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What a tokenizer puts around the ids of a text, prompt included, and how it pads."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    padding_id: int

    @property
    def size(self) -> int:
        """The number of tokens in a sequence that are not the chunk's."""
        return len(self.before) + len(self.after)

    def sequence(self, chunk: Chunk) -> tuple[int, ...]:
        """Return all ids that the model reads for a chunk."""
        return (*self.before, *map(int, chunk.token_ids), *self.after)

    def batch(
        self, chunks: Sequence[Chunk], length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """Return ids and attention mask, both of shape (n, length), padded on the right.

        The mask is None where nothing is padded: attention is faster without one.
        """
        ids = np.full((len(chunks), length), self.padding_id, np.int64)
        first = len(self.before)
        ids[:, :first] = self.before
        ends = np.array([first + len(chunk.token_ids) for chunk in chunks])
        for row, (chunk, end) in enumerate(zip(chunks, ends, strict=True)):
            ids[row, first:end] = chunk.token_ids
            ids[row, end : end + len(self.after)] = self.after
        lengths = ends + len(self.after)
        if (lengths == length).all():
            return ids, None
        return ids, (np.arange(length) < lengths[:, None]).astype(np.int64)


def learn_frame(tokenizer: Tokenizer, prompt: str, padding_id: int | None) -> Frame | None:
    """Find out by example what a tokenizer puts around a text; None where no rule shows.

    The tokenizer must not truncate or pad.
    """
    content = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    sequence = tokenizer.encode(prompt + _PROBE).ids
    for start in range(len(sequence) - len(content), -1, -1):
        if sequence[start : start + len(content)] == content:
            return Frame(
                before=tuple(sequence[:start]),
                after=tuple(sequence[start + len(content) :]),
                padding_id=padding_id or 0,
            )
    return None


def keeps_ids(tokenizer: Tokenizer, frame: Frame, prompt: str, chunks: Sequence[Chunk]) -> bool:
    """Tell whether framing the ids of chunks equals tokenising prompt and text together."""
    texts = [prompt + chunk.text for chunk in chunks]
    encodings = tokenizer.encode_batch_fast(texts)
    return all(
        tuple(encoding.ids) == frame.sequence(chunk)
        for encoding, chunk in zip(encodings, chunks, strict=True)
    )
