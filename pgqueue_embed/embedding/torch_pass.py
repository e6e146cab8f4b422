"""The pass of BERT and its relatives over a batch of texts, in torch, on any device.

Operations follow those of transformers and sentence-transformers one by one, so that the vectors
are theirs, bit by bit. Not imported before a model is opened: torch takes a second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional

from pgqueue_embed.embedding.light_files import Dense, Normalize
from pgqueue_embed.embedding.network_plan import (
    DISTANCE_BUCKETS,
    DISTANCES,
    EMBEDDED_NORM,
    FARTHEST,
    POSITIONS,
    TYPES,
    WORDS,
    NetworkPlan,
)
from pgqueue_embed.embedding.packed import multiply

_ACTIVATIONS = {"Tanh": torch.tanh, "Identity": lambda vectors: vectors}
_HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class TorchPass:
    """One pass over a stack by its weights, whose matrices may be packed for oneDNN."""

    plan: NetworkPlan
    pooling: str
    after: tuple[Dense | Normalize, ...]
    weights: Mapping[str, torch.Tensor]
    is_packed: bool = False

    def vectors(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the vectors of texts, shape (n, dimensions).

        ``ids`` and ``mask`` have shape (n, length), padded on the right; without padding the mask
        is None: attention is faster so.
        """
        vectors = self._pooled(self._tokens(ids, mask), mask)
        for number, step in enumerate(self.after):
            if isinstance(step, Dense):
                vectors = _ACTIVATIONS[step.activation](self._linear(str(number), vectors))
            else:
                vectors = functional.normalize(vectors, p=2, dim=-1)
        return vectors

    def _tokens(self, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the vector of each token, shape (n, length, width)."""
        vectors = self._normed(EMBEDDED_NORM, self._embedded(ids))
        attention = _Attention(self.plan.heads, vectors, mask)
        if self.plan.distances:
            attention.bias = self._of_distances(ids.shape[1], ids.device)
        for number in range(self.plan.layers):
            vectors = self._through(self.plan.names.layer.format(number), vectors, attention)
        return vectors

    def _embedded(self, ids: torch.Tensor) -> torch.Tensor:
        vectors = functional.embedding(ids, self._table(WORDS))
        if self.plan.types:
            vectors = vectors + self._table(TYPES)[0]
        return vectors + functional.embedding(self._positions(ids), self._table(POSITIONS))

    def _positions(self, ids: torch.Tensor) -> torch.Tensor:
        behind = self.plan.padding_id
        if behind is None:
            return torch.arange(ids.shape[1], device=ids.device)
        is_text = ids.ne(behind).int()
        return (torch.cumsum(is_text, dim=1).type_as(is_text) * is_text).long() + behind

    def _through(self, layer: str, vectors: torch.Tensor, attention: _Attention) -> torch.Tensor:
        """Return the vectors behind one layer."""
        names = self.plan.names
        projected = (
            attention.split(self._linear(layer + part, vectors))
            for part in (names.query, names.key, names.value)
        )
        attended = self._linear(layer + names.attended, attention.join(*projected))
        vectors = self._normed(layer + names.attended_norm, attended + vectors)
        inner = functional.gelu(self._linear(layer + names.inner, vectors))
        outer = self._linear(layer + names.outer, inner)
        return self._normed(layer + names.outer_norm, outer + vectors)

    def _of_distances(self, length: int, device: torch.device) -> torch.Tensor:
        """Return what is added to the attention of each head, shape (1, heads, length, length)."""
        place = torch.arange(length, device=device)
        buckets = _distance_buckets(place[:, None] - place[None, :])
        return functional.embedding(buckets, self._table(DISTANCES)).permute(2, 0, 1).unsqueeze(0)

    def _pooled(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if self.pooling == "cls":
            return tokens[:, 0]
        if mask is None:
            mask = torch.ones(tokens.shape[:2], device=tokens.device, dtype=torch.int64)
        wide = torch.float32 if tokens.dtype in _HALVES else tokens.dtype
        share = mask.unsqueeze(-1).to(tokens.dtype)
        total = (tokens * share).sum(dim=1, dtype=wide)
        count = torch.clamp(share.sum(dim=1, dtype=wide), min=1e-9)
        return (total / count).to(tokens.dtype)

    def _table(self, name: str) -> torch.Tensor:
        return self.weights[f"{name}.weight"]

    def _linear(self, name: str, vectors: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        if not self.is_packed:
            return functional.linear(vectors, weight, bias)
        product: torch.Tensor = multiply(vectors, weight, bias)
        return product

    def _normed(self, name: str, vectors: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return functional.layer_norm(vectors, weight.shape, weight, bias, self.plan.epsilon)


class _Attention:
    """Attention over the tokens of a batch, of which ``mask`` names those that are text."""

    def __init__(self, heads: int, vectors: torch.Tensor, mask: torch.Tensor | None) -> None:
        rows, length, _ = vectors.shape
        self.bias: torch.Tensor | None = None
        self._heads = heads
        self._dtype = vectors.dtype
        self._shown = None
        if mask is not None:
            self._shown = mask.bool()[:, None, None, :].expand(rows, 1, length, length)

    def split(self, vectors: torch.Tensor) -> torch.Tensor:
        """Part (n, length, width) by heads, into (n, heads, length, width of a head)."""
        return vectors.view(*vectors.shape[:2], self._heads, -1).transpose(1, 2)

    def join(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Return what each token attends to, shape (n, length, width)."""
        if self.bias is None:
            scale = query.shape[-1] ** -0.5
            attended = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=self._shown, scale=scale
            )
        else:
            attended = self._by_distance(query, key, value, self.bias)
        return attended.transpose(1, 2).flatten(2)

    def _by_distance(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        """As MPNet's own code: its scores have the precision of the products."""
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(query.shape[-1])
        scores += bias
        if self._shown is not None:
            shown = torch.zeros((), device=scores.device, dtype=self._dtype)
            hidden = torch.finfo(self._dtype).min
            scores = scores + torch.where(self._shown, shown, hidden)
        return torch.matmul(functional.softmax(scores, dim=-1), value)


def _distance_buckets(distances: torch.Tensor) -> torch.Tensor:
    """Return the bucket of each distance: exact near by, by logarithm farther away, and with a half
    of the buckets for each direction."""
    half = DISTANCE_BUCKETS // 2
    exact = half // 2
    near = torch.abs(distances)
    by_log = torch.log(near.float() / exact) / math.log(FARTHEST / exact) * (half - exact)
    far = exact + by_log.to(torch.long)
    far = torch.min(far, torch.full_like(far, half - 1))
    return (distances < 0).to(torch.long) * half + torch.where(near < exact, near, far)
