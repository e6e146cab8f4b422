"""An embedder that takes what a changed record's target holds already instead of computing it.

The vector of a chunk depends on the model and the chunk's text alone, so one that this pipeline has
written for the same text is the one that the model would give. It is read before the mutex, as a
hint, and written again under it with all others of its record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.claim.embed import Embedder, OnProgress
from pgqueue_embed.db.faults import on_users_tables
from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.vectors import LENGTH_TOLERANCE, unpack
from pgqueue_embed.embedding import Embedded
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.source.read import SourceRecord
from pgqueue_embed.source.trust import check_trust_often
from pgqueue_embed.target import hash_of, hash_of_text, target_of

# The hashes go to the server and only the vectors that match come back.
STORED = """
select hash, embedding
from (
    select {hash} as hash, target.{embedding} as embedding
    from {target} as target
    where {key_is_among}
) as stored
where hash = any(%(hashes)s)
"""


class ReusingEmbedder:
    """Fulfils embed.Embedder by what the target has of the records `keys`, and by `embedder`."""

    def __init__(
        self, embedder: Embedder, side: Connection, pipeline: Pipeline, keys: Sequence[str]
    ) -> None:
        self._embedder = embedder
        self._side = side
        self._pipeline = pipeline
        self._keys = list(keys)

    def embed(
        self, chunks: Sequence[Chunk], *, on_progress: OnProgress, anew: bool = False
    ) -> Embedded:
        """Return the vectors of `chunks`; raises PipelineFault if the target cannot be read."""
        if anew or not self._keys:
            return self._embedder.embed(chunks, on_progress=on_progress, anew=anew)
        hashes = [hash_of_text(chunk.text) for chunk in chunks]
        stored = self._stored(hashes)
        missing = [row for row, digest in enumerate(hashes) if digest not in stored]
        vectors = np.empty((len(chunks), self._pipeline.dimensions), np.float32)
        for row, digest in enumerate(hashes):
            if digest in stored:
                vectors[row] = stored[digest]
        reused = len(chunks) - len(missing)
        if not missing:
            return Embedded(vectors=vectors, reused=reused)
        inputs = [chunks[row] for row in missing]
        computed = self._embedder.embed(inputs, on_progress=on_progress)
        vectors[missing] = computed.vectors
        return replace(computed, vectors=vectors, reused=reused)

    def _stored(self, hashes: Sequence[bytes]) -> Mapping[bytes, NDArray[np.float32]]:
        """Return the usable ones of the vectors that the target holds for chunks of `hashes`."""
        pipeline = self._pipeline
        names = pipeline.spec.columns
        stored = sql.Identifier(
            "target", names.text_chunk if pipeline.spec.text else names.text_hash
        )
        query = sql.SQL(STORED).format(
            hash=hash_of(stored) if pipeline.spec.text else stored,
            embedding=sql.Identifier(names.embedding),
            target=pipeline.target.identifier,
            key_is_among=target_of(pipeline).key_is_among,
        )
        values = {"keys": self._keys, "hashes": list(hashes)}
        trust = check_trust_often(self._side, pipeline)
        doing = f"reading the vectors of {pipeline.target}"
        with trust.kept(self._side), on_users_tables(self._side, doing):
            rows = self._side.execute(query, values, binary=True).fetchall()
        vectors = unpack(
            [vector for _, vector in rows],
            vector_type=pipeline.spec.vector_type,
            dimensions=pipeline.dimensions,
        )
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
        return {
            digest: vector
            for (digest, _), vector, length in zip(rows, vectors, lengths, strict=True)
            # A vector further off was not written by a worker; nor is NaN within the tolerance.
            if abs(length - 1.0) <= LENGTH_TOLERANCE
        }


def reusable_keys(pipeline: Pipeline, records: Sequence[tuple[SourceRecord, bool]]) -> list[str]:
    """Return whose vectors may be reused for `records`, each with whether to embed it again.

    Beside a record that is to be embedded again, none. Nor with a chunk template: the model has
    read more than the chunk then, and the target does not tell what that was.
    """
    is_possible = pipeline.spec.chunking == "tokens" and pipeline.spec.chunk_template is None
    if not is_possible or any(again for _, again in records):
        return []
    return [record.key for record, _ in records if record.has_vectors]
