"""The make of networks of BERT's family: sizes, variants, and the names of their weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Names:
    """What the files of a family call the parts of the network; ``{}`` is a layer's number."""

    layer: str = "encoder.layer.{}."
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attended: str = "attention.output.dense"
    attended_norm: str = "attention.output.LayerNorm"
    inner: str = "intermediate.dense"
    outer: str = "output.dense"
    outer_norm: str = "output.LayerNorm"


WORDS = "embeddings.word_embeddings"
POSITIONS = "embeddings.position_embeddings"
TYPES = "embeddings.token_type_embeddings"
EMBEDDED_NORM = "embeddings.LayerNorm"
DISTANCES = "encoder.relative_attention_bias"

# Fixed in MPNet's code, whatever its configuration says.
DISTANCE_BUCKETS = 32
FARTHEST = 128


@dataclass(frozen=True, kw_only=True)
class NetworkPlan:
    """The sizes and the variants of one network.

    ``architecture`` is its class in transformers. Positions count from behind ``padding_id`` where
    it is not None, else from 0. With ``types`` every token has the first token type; with
    ``distances`` attention depends on how far away a token is.
    """

    architecture: str
    names: Names
    vocabulary: int
    width: int
    inner_width: int
    layers: int
    heads: int
    positions: int
    epsilon: float
    padding_id: int | None = None
    types: int = 0
    distances: bool = False

    @property
    def tokens(self) -> int:
        """How many tokens the network has positions for."""
        return self.positions - (0 if self.padding_id is None else self.padding_id + 1)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of every weight that the network needs."""
        width = self.width
        found: dict[str, tuple[int, ...]] = {
            f"{WORDS}.weight": (self.vocabulary, width),
            f"{POSITIONS}.weight": (self.positions, width),
            **_norm(EMBEDDED_NORM, width),
        }
        if self.types:
            found[f"{TYPES}.weight"] = (self.types, width)
        if self.distances:
            found[f"{DISTANCES}.weight"] = (DISTANCE_BUCKETS, self.heads)
        for number in range(self.layers):
            found |= self._shapes_of_layer(self.names.layer.format(number))
        return found

    def _shapes_of_layer(self, layer: str) -> dict[str, tuple[int, ...]]:
        names, width = self.names, self.width
        found: dict[str, tuple[int, ...]] = {}
        for part in (names.query, names.key, names.value, names.attended):
            found |= _linear(layer + part, width, width)
        found |= _linear(layer + names.inner, width, self.inner_width)
        found |= _linear(layer + names.outer, self.inner_width, width)
        return (
            found
            | _norm(layer + names.attended_norm, width)
            | _norm(layer + names.outer_norm, width)
        )


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
