"""The model alone: what no pipeline can pass, and what the library does by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pgqueue_embed.chunking import Chunk, Chunker
from pgqueue_embed.embedding import EmbeddingModel, calibrate, resolve_model
from pgqueue_embed.embedding.batch_runner import BatchRunner
from pgqueue_embed.embedding.shapes import plan_batches
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CHUNK_TOKENS = 128
OVERLAP_TOKENS = 20


def load_model(precision: str = "auto") -> EmbeddingModel:
    """Load the default model as a worker on this machine does, with the same batch sizes."""
    model = EmbeddingModel.load(resolve_model(DEFAULT_MODEL), precision=precision)
    calibrate(model)
    return model


def distinct_chunks(model: EmbeddingModel, documents: Sequence[str]) -> list[Chunk]:
    """Return the chunks of a worker with default settings, each text once, with their ids."""
    assert model.tokenizer is not None, "the default model has a tokenizer"
    chunker = Chunker(model.tokenizer, max_tokens=CHUNK_TOKENS, overlap_tokens=OVERLAP_TOKENS)
    chunks = [chunk for document in chunker.chunk(documents) for chunk in document.chunks]
    return list({chunk.text: chunk for chunk in chunks}.values())


def forward_rate(model: EmbeddingModel, chunks: Sequence[Chunk]) -> Callable[[], float]:
    """Return a measurement of the forward pass on ready ids, in chunks a second.

    The batches are those that a worker's device thread plans and runs; nothing is tokenised,
    cached or written.
    """
    runner = BatchRunner(model)
    lengths = [model.sequence_tokens(chunk) for chunk in chunks]
    batches = plan_batches(lengths, runner.limits)

    def measure() -> float:
        started = time.perf_counter()
        with model.session():
            for batch in batches:
                for _ in runner.run(chunks, batch):
                    pass
        return len(chunks) / (time.perf_counter() - started)

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
