"""Embeds a sample of what is stored again, in fp32 on the CPU, and compares; it only reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.db.session import Connection
from pgqueue_embed.embedding import EmbeddingModel
from pgqueue_embed.embedding.rows import first_dimensions
from pgqueue_embed.errors import RecordFault
from pgqueue_embed.pipeline.catalog import keep_pipeline
from pgqueue_embed.pipeline.model import check_local_model, use_of
from pgqueue_embed.pipeline.options import VerifyOptions
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.adoptions import check_adopted
from pgqueue_embed.queue.work_items import Handling, add_items
from pgqueue_embed.verification.reread import inputs_of
from pgqueue_embed.verification.result import Compared, Verification
from pgqueue_embed.verification.sample import DrawnChunk, draw_chunks

BATCH_CHUNKS = 8


def verify(
    connection: Connection,
    pipeline: Pipeline,
    options: VerifyOptions,
    *,
    model_path: str | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Verification:
    """Compare stored vectors, drawn at random, with the model's own.

    `on_progress` is told how many are compared, of how many. Raises UsageError while the table is
    being adopted, ModelMismatch or ModelError for a model that is not to be had, PipelineFault for
    tables that cannot be read.
    """
    check_adopted(connection, pipeline)
    drawn = draw_chunks(connection, pipeline, options.sample)
    if not drawn:
        return Verification(compared=(), outdated=0, min_cosine=options.min_cosine)
    resolved = check_local_model(pipeline, model_path)
    use = use_of(pipeline.spec)
    model = EmbeddingModel.reference(resolved, use=use, compare=True)
    inputs = inputs_of(connection, pipeline, model, drawn)
    pairs = [(each, chunk) for each, chunk in zip(drawn, inputs, strict=True) if chunk is not None]
    compared = tuple(_compared(model, pipeline, pairs, on_progress))
    outdated = len(drawn) - len(pairs)
    return Verification(compared=compared, outdated=outdated, min_cosine=options.min_cosine)


def _compared(
    model: EmbeddingModel,
    pipeline: Pipeline,
    pairs: Sequence[tuple[DrawnChunk, Chunk]],
    on_progress: Callable[[int, int], None],
) -> Iterator[Compared]:
    ordered = sorted(pairs, key=lambda pair: len(pair[1].token_ids))
    for start in range(0, len(ordered), BATCH_CHUNKS):
        on_progress(start, len(ordered))
        batch = ordered[start : start + BATCH_CHUNKS]
        for (drawn, _), vector in zip(batch, _embedded(model, pipeline, batch), strict=True):
            yield _compare(drawn, vector)


def _embedded(
    model: EmbeddingModel, pipeline: Pipeline, batch: Sequence[tuple[DrawnChunk, Chunk]]
) -> list[NDArray[np.float32] | None]:
    """Return the vector of each chunk; None where the model gives none."""
    try:
        vectors = model.forward([chunk for _, chunk in batch])
        if pipeline.spec.truncate_dim is not None:
            vectors = first_dimensions(vectors, pipeline.spec.truncate_dim)
    except RecordFault:
        if len(batch) == 1:
            return [None]
        return [vector for each in batch for vector in _embedded(model, pipeline, [each])]
    return list(vectors)


def _compare(drawn: DrawnChunk, computed: NDArray[np.float32] | None) -> Compared:
    stored = np.array(drawn.vector, np.float64)
    length = float(np.linalg.norm(stored))
    cosine = 0.0
    if computed is not None and stored.shape == computed.shape and 0 < length < np.inf:
        cosine = float(stored @ computed.astype(np.float64)) / length
    return Compared(
        key=drawn.key,
        chunk_index=drawn.chunk_index,
        cosine=min(cosine, 1.0),
        length=length,
        worker=drawn.worker,
        precision=drawn.precision,
        day=None if drawn.embedded_at is None else drawn.embedded_at.astimezone().date(),
    )


def put_back(connection: Connection, pipeline: Pipeline, found: Verification) -> int:
    """Queue the records of what differs to be embedded again; returns how many."""
    keys = sorted({each.key for each in found.differing})
    if keys:
        with connection.transaction():
            keep_pipeline(connection, pipeline)
            again = Handling(known=True, embed_again=True)
            add_items(connection, pipeline.id, keys, again)
    return len(keys)
