"""Known texts with the vectors that they should have, and how near a device comes to these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding import canaries
from pgqueue_embed.embedding.references import References
from pgqueue_embed.embedding.rows import Vectors, agreement, is_unit, lowest_cosine

# Embeds chunks in one batch, padded to a length or to the longest.
Embed = Callable[[Sequence[Chunk], int | None], Vectors]

# Canaries have all lengths: in one batch two thirds of its tokens would be padding, which a CPU
# computes for seconds whenever a model is opened.
ON_CPU = 2

# Of a vector in fp32 to itself, computed again: what differs is rounding.
_SAME = 0.99999


class CanaryCheck:
    """The canaries of a model; ``references`` are the vectors in fp32 on the CPU, by number.

    ``sequence_tokens`` gives the length of a chunk as the model reads it; ``kept`` is the file of
    references that are computed once for some starts.
    """

    def __init__(self, chunks: Sequence[Chunk], sequence_tokens: Callable[[Chunk], int]) -> None:
        self.chunks = chunks
        self._lengths = [sequence_tokens(chunk) for chunk in chunks]
        self._references: dict[int, Vectors] = {}
        self.kept: References | None = None
        # Whether they are those of an earlier start, of which a few only were compared.
        self.are_kept = False

    def remember(self, references: Mapping[int, Vectors]) -> None:
        """Take what is known already of some of them."""
        self._references.update(references)

    def complete(self, embed: Embed) -> None:
        """Learn the references: kept ones, or by ``embed``, which computes in fp32 on the CPU."""
        if len(self._references) == len(self.chunks):
            return
        vectors = self._recalled()
        if vectors is None:
            self.learn(embed)
            return
        self._references, self.are_kept = dict(enumerate(vectors)), True

    def learn(self, embed: Embed) -> None:
        """Compute the references by ``embed``, in fp32 on the CPU, and keep them."""
        vectors = self._vectors(embed, ON_CPU)
        if self.kept is not None:
            self.kept.keep(vectors)
        self._references, self.are_kept = dict(enumerate(vectors)), False

    def _recalled(self) -> Vectors | None:
        """Return what an earlier start has kept, if it agrees with all that is known now."""
        known = sorted(self._references)
        if self.kept is None or not known:
            return None
        now = np.stack([self._references[number] for number in known])
        vectors = self.kept.recall((len(self.chunks), now.shape[1]))
        if vectors is None or not is_unit(vectors):
            return None
        return vectors if lowest_cosine(vectors[known], now) >= _SAME else None

    def agreement(self, embed: Embed, at_once: int | None) -> float:
        """Return the lowest cosine of all canaries, so many at once, or all.

        A GPU gets all in one batch, since Metal compiles every new shape.
        """
        wanted = np.stack([self._references[n] for n in range(len(self.chunks))])
        return agreement(lambda: self._vectors(embed, at_once), wanted)

    def agreement_in(self, embed: Embed, rows: int, length: int) -> float:
        """Return the lowest cosine of known canaries in a batch of this shape."""
        numbers = sorted(self._references)
        lengths = [self._lengths[number] for number in numbers]
        picked = [numbers[n] for n in canaries.of_shape(lengths, rows, length)]
        chunks = [self.chunks[n] for n in picked]
        references = np.stack([self._references[n] for n in picked])
        return agreement(lambda: embed(chunks, length), references)

    def _vectors(self, embed: Embed, at_once: int | None) -> Vectors:
        order = sorted(range(len(self.chunks)), key=self._lengths.__getitem__)
        size = at_once or len(order)
        batches = [order[first : first + size] for first in range(0, len(order), size)]
        vectors = [embed([self.chunks[n] for n in batch], None) for batch in batches]
        in_order: Vectors = np.concatenate(vectors)[np.argsort(order)]
        return in_order
