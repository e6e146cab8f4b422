"""`ModelFacts`: properties of an opened model, for people and for decisions about its use."""

from __future__ import annotations

from dataclasses import dataclass

from pgqueue_embed.embedding.network import UNLIMITED_TOKENS, Network, names_pooling
from pgqueue_embed.embedding.reader import TaskReader
from pgqueue_embed.embedding.resolve import ResolvedModel
from pgqueue_embed.embedding.self_test import SelfTest
from pgqueue_embed.errors import ModelError

COSINE = "cosine"
# Of vectors of length 1, an inner product is their cosine and a distance falls with it.
_SAME_ORDER_AT_UNIT_LENGTH = ("dot", "euclidean")


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """How a model reads documents and queries, and how its vectors are meant to be compared.

    ``kind`` is the class of the module that reads documents, ``pooling`` how tokens become one
    vector, "" where the kind says it. Limits are tokens of a sequence, special ones included.
    ``feeding`` is what is fed to it, in words. ``is_unit_length`` says that the model itself gives
    vectors of length 1. ``routes``: documents and queries are read by different modules.
    ``pooling_is_known``: its files, or the pipeline, say how tokens become one vector.
    ``lowest_cosine`` is that of the self-test, to the vectors of sentence-transformers; None where
    they were not computed, for a kind of model that is proved to have them.
    ``stray_weights`` are in its files, and no network has a place for them.
    ``computed_alone``: a chunk has its own vector only where no other is beside it in a batch.
    """

    name: str
    kind: str
    pooling: str
    dimensions: int
    document_tokens: int
    query_tokens: int
    document_prompt: str
    query_prompt: str
    similarity: str
    is_unit_length: bool
    tokenizer: str
    feeding: str
    routes: bool
    pooling_is_known: bool
    lowest_cosine: float | None
    computed_alone: bool
    stray_weights: tuple[str, ...]

    @property
    def ranks_by_cosine(self) -> bool:
        """Whether the model's own similarity orders its vectors as their cosine does."""
        if self.similarity == COSINE:
            return True
        return self.is_unit_length and self.similarity in _SAME_ORDER_AT_UNIT_LENGTH

    def sentences(self) -> tuple[str, ...]:
        """Return all of it for the screen, a line each."""
        length = "of length 1" if self.is_unit_length else "of many lengths, scaled to 1"
        return (
            f"{self.kind}, pooling {self.pooling or 'of its own'}, {self.dimensions} dimensions,"
            f" similarity {self.similarity}, vectors {length}",
            f"tokenizer {self.tokenizer}, reads {_limit(self.document_tokens)} tokens of a"
            f" document, {_limit(self.query_tokens)} of a query"
            + (", read by networks of their own" if self.routes else ""),
            f"prompt of documents {self.document_prompt!r}, of queries {self.query_prompt!r}",
            f"is fed {self.feeding}{', a chunk at a time' if self.computed_alone else ''};"
            f" {self._comparison()}",
        )

    def _comparison(self) -> str:
        if self.lowest_cosine is None:
            return "of a kind that has the vectors of sentence-transformers"
        return f"lowest cosine to sentence-transformers {self.lowest_cosine:.6f}"


def refuse_unsuited(facts: ModelFacts) -> None:
    """Raise ModelError for a model whose vectors a new pipeline would use in a wrong way.

    Pipelines that were made before go on with it as they did.
    """
    if not facts.pooling_is_known:
        raise ModelError(
            f"{facts.name} is a bare transformer: its files do not say how the vectors of its"
            " tokens become one; if you know how it was trained, say it: --pooling mean, cls, …"
        )
    if facts.stray_weights:
        raise ModelError(
            f"model {facts.name} is not what its configuration says: no network has a place for the"
            f" weight {facts.stray_weights[0]} ({len(facts.stray_weights)} in all)"
        )
    if not facts.ranks_by_cosine:
        raise ModelError(
            f"model {facts.name} is made for {facts.similarity} similarity and its vectors have"
            " lengths of their own, but pgembed stores vectors of length 1 and ranks by cosine,"
            " which is another order; choose a model for cosine similarity"
        )


def learn_facts(
    network: Network,
    documents: TaskReader,
    queries: TaskReader,
    tests: tuple[SelfTest, SelfTest],
    resolved: ResolvedModel,
    *,
    pooling: str | None,
    stray_weights: tuple[str, ...],
) -> ModelFacts:
    """Gather what is known of an opened model; raises ModelError for two widths of vectors.

    ``pooling`` is what the pipeline says of it.
    """
    if tests[0].dimensions != tests[1].dimensions:
        raise ModelError(
            f"model {resolved.name} gives documents {tests[0].dimensions} dimensions and queries"
            f" {tests[1].dimensions}: they cannot be compared"
        )
    cosines = [test.lowest_cosine for test in tests if test.lowest_cosine is not None]
    return ModelFacts(
        name=resolved.name,
        kind=" + ".join(documents.part.kinds),
        pooling=", ".join(documents.part.poolings),
        dimensions=tests[0].dimensions,
        document_tokens=documents.max_tokens,
        query_tokens=queries.max_tokens,
        document_prompt=documents.prompt,
        query_prompt=queries.prompt,
        similarity=network.similarity,
        is_unit_length=all(test.is_unit_length for test in tests),
        tokenizer=documents.tokenizer_kind,
        feeding=documents.feeding,
        routes=documents.part is not queries.part,
        pooling_is_known=pooling is not None or names_pooling(resolved.path),
        lowest_cosine=min(cosines, default=None),
        computed_alone=tests[0].padding_changes_vectors,
        stray_weights=stray_weights,
    )


def _limit(tokens: int) -> str:
    return "all" if tokens == UNLIMITED_TOKENS else f"{tokens:,}"
