"""The model alone: what no pipeline can pass, and what the library does by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING

from pgqueue_embed.chunking import Chunk, Chunker
from pgqueue_embed.embedding import EmbeddingModel, keep_heap, resolve_model
from pgqueue_embed.embedding.batch_runner import BatchRunner
from pgqueue_embed.embedding.batch_sizes import best_size
from pgqueue_embed.embedding.devices import kind_of
from pgqueue_embed.embedding.precision import Variant
from pgqueue_embed.embedding.shapes import SIZES_OF, plan_batches
from pgqueue_embed.embedding.working_clock import Clock
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CHUNK_TOKENS = 128
OVERLAP_TOKENS = 20
SIZE_ROUNDS = 4


def load_model(
    precision: str = "auto", *, name: str = DEFAULT_MODEL, device: str = "auto"
) -> EmbeddingModel:
    """Load a model as a worker on this machine does, in the batches that it would come to take."""
    keep_heap()
    model = EmbeddingModel.load(resolve_model(name), device=device, precision=precision)
    chunks = model.sample_chunks(min(CHUNK_TOKENS, model.max_sequence_tokens))
    model.limits = model.limits.resized(_fastest_size(model, chunks))
    return model


def in_variant(variant: Variant, device: str) -> tuple[EmbeddingModel, float]:
    """Load the default model as a variant computes it, and the lowest cosine of its canaries."""
    model = EmbeddingModel(resolve_model(DEFAULT_MODEL))
    return model, model.place_in(device, variant)


def _fastest_size(model: EmbeddingModel, chunks: Sequence[Chunk]) -> int:
    """Return the size in which known texts are fastest, of two batches of each, timed in turns."""
    sizes = SIZES_OF[kind_of(model.device)]
    usual, rates = model.limits, dict.fromkeys(sizes, 0.0)
    for size in sizes * SIZE_ROUNDS:
        model.limits = usual.resized(size)
        rows = 2 * model.limits.rows_at(CHUNK_TOKENS)
        many = list(islice(cycle(chunks), rows))
        rates[size] = max(rates[size], forward_rate(model, many)())
    model.limits = usual
    return best_size(rates)


def distinct_chunks(model: EmbeddingModel, documents: Sequence[str]) -> list[Chunk]:
    """Return the chunks of a worker with default settings, each text once, with their ids."""
    assert model.tokenizer is not None, "the default model has a tokenizer"
    chunker = Chunker(model.tokenizer, max_tokens=CHUNK_TOKENS, overlap_tokens=OVERLAP_TOKENS)
    chunks = [chunk for document in chunker.chunk(documents) for chunk in document.chunks]
    return list({chunk.text: chunk for chunk in chunks}.values())


def forward_rate(
    model: EmbeddingModel, chunks: Sequence[Chunk], batch_tokens: int | None = None
) -> Callable[[], float]:
    """Return a measurement of the forward pass on ready ids, in chunks a second.

    The batches are those that a worker's device thread plans, and as many of them are launched
    ahead; nothing is tokenised, cached or written.
    """
    runner = BatchRunner(model)
    lengths = [model.sequence_tokens(chunk) for chunk in chunks]
    limits = runner.limits if batch_tokens is None else runner.limits.resized(batch_tokens)
    batches = plan_batches(lengths, limits)

    def measure() -> float:
        started = time.perf_counter()
        with model.session():
            for _ in runner.run(chunks, batches):
                pass
        return len(chunks) / (time.perf_counter() - started)

    return measure


def one_by_one_rate(
    model: EmbeddingModel,
    chunks: Sequence[Chunk],
    batch_tokens: int | None = None,
    clock: Clock = time.perf_counter,
) -> Callable[[], float]:
    """Return a measurement of the same with one batch after the other, each on all cores."""
    lengths = [model.sequence_tokens(chunk) for chunk in chunks]
    limits = model.limits if batch_tokens is None else model.limits.resized(batch_tokens)
    batches = plan_batches(lengths, limits)

    def measure() -> float:
        started = clock()
        with model.session():
            for batch in batches:
                model.forward([chunks[row] for row in batch.rows], length=batch.length)
        return len(chunks) / (clock() - started)

    return measure


def load_library() -> SentenceTransformer:
    """Load the default model as the library has it by itself."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(resolve_model(DEFAULT_MODEL).path), device="cpu")


def encode_rate(library: SentenceTransformer, chunks: Sequence[Chunk]) -> Callable[[], float]:
    """Return a measurement of SentenceTransformer.encode with its defaults, in chunks a second."""
    texts = [chunk.text for chunk in chunks]

    def measure() -> float:
        started = time.perf_counter()
        library.encode(texts, show_progress_bar=False)
        return len(texts) / (time.perf_counter() - started)

    return measure
