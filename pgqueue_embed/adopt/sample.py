"""Compares stored vectors with those of a model: some, drawn at random, are computed again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from pgqueue_embed.adopt.candidate import Candidate, ReferenceModel
from pgqueue_embed.adopt.judge import Assessment, Judgement
from pgqueue_embed.adopt.slices import judge_keys
from pgqueue_embed.adopt.stored_chunks import table_names
from pgqueue_embed.chunking import Chunk
from pgqueue_embed.db.session import Connection
from pgqueue_embed.embedding.rows import unit_rows
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.options import SampleOptions
from pgqueue_embed.quantities import percent
from pgqueue_embed.source.trust import trusting

MIN_COSINE = SampleOptions.min_cosine
SAMPLE_CHUNKS = SampleOptions.sample

# What of the sample must agree: half precision and other hardware stay far above the least cosine,
# so that whatever does not agree is of another text.
LOWEST_SHARE = 0.99

# Blocks are drawn and not rows, since a table of 20 million rows is not read for 200. A block holds
# about four chunks with vectors.
SAMPLE_BLOCKS = 400
BATCH_CHUNKS = 16


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What a sample of stored chunks showed.

    `worths` counts the chunks by what their records are worth; `cosines`, float64, are those of
    chunks of right records with the vectors that the model gives for the same slice. `doubtful` are
    keys of records with a vector below the least cosine.
    """

    worths: Counter[Assessment]
    cosines: NDArray[np.float64]
    min_cosine: float
    doubtful: tuple[str, ...]

    @property
    def share(self) -> float:
        """The share, 0 to 1, of the compared vectors that agree."""
        return float(np.mean(self.cosines >= self.min_cosine)) if len(self.cosines) else 0.0

    @property
    def median(self) -> float:
        """The median cosine."""
        return float(np.median(self.cosines))


def compare_sample(
    connection: Connection,
    candidate: Candidate,
    *,
    sample_chunks: int = SAMPLE_CHUNKS,
    min_cosine: float = MIN_COSINE,
) -> Agreement:
    """Compare stored vectors with those of the model.

    Raises UsageError for options out of range.
    """
    if sample_chunks < 1:
        raise UsageError(f"--sample {sample_chunks}: give at least 1")
    if not 0 < min_cosine <= 1:
        raise UsageError(f"--min-cosine {min_cosine:g}: give more than 0, and at most 1")
    drawn = _draw(connection, candidate, sample_chunks)
    keys = sorted({each.key for each in drawn})
    judgements: dict[str, Judgement] = {}
    judge = candidate.judge()
    while keys:
        judged = judge_keys(connection, candidate.pipeline, judge, keys)
        judgements |= judged.judgements
        keys = keys[keys.index(judged.last_key) + 1 :] if judged.last_key else []
    return _agreement(candidate.model, drawn, judgements, min_cosine)


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """A row of the table."""

    key: str
    version: str
    vector: Sequence[float] | None


DRAW = """
select {target_key_text}, {version}, target.{embedding}::real[]
from {target} as target tablesample system (%(percent)s)
order by random()
limit %(sample_chunks)s
"""


def _draw(connection: Connection, candidate: Candidate, sample_chunks: int) -> list[_Drawn]:
    query = sql.SQL(DRAW).format(**table_names(connection, candidate.pipeline))
    blocks = connection.value(
        "select pg_relation_size(%s::regclass) / current_setting('block_size')::int",
        (candidate.spec.target.quoted,),
    )
    percent = min(100.0, 100.0 * max(SAMPLE_BLOCKS, 2 * sample_chunks) / max(blocks, 1))
    with trusting(connection, candidate.spec), connection.transaction():
        values = {"percent": percent, "sample_chunks": sample_chunks}
        rows = connection.execute(query, values).fetchall()
    if not rows:
        raise UsageError(
            f"{candidate.spec.target} has no chunks to adopt; drop it, and make a pipeline:"
            " pgembed create"
        )
    return [_Drawn(key=key, version=version, vector=vector) for key, version, vector in rows]


def _agreement(
    model: ReferenceModel,
    drawn: Sequence[_Drawn],
    judgements: Mapping[str, Judgement],
    min_cosine: float,
) -> Agreement:
    gone = Judgement(worth=Assessment.GONE)
    found = [(each, judgements.get(each.key, gone)) for each in drawn]
    compared = [
        (each, placed.chunk)
        for each, judgement in found
        for placed in judgement.placed
        if placed.stored.version == each.version
    ]
    vectors = [each.vector for each, _ in compared if each.vector is not None]
    cosines = _cosines(model, vectors, [chunk for _, chunk in compared])
    low = {each.key for (each, _), c in zip(compared, cosines, strict=True) if c < min_cosine}
    return Agreement(
        worths=Counter(judgement.worth for _, judgement in found),
        cosines=cosines,
        min_cosine=min_cosine,
        doubtful=tuple(sorted(low)),
    )


def _cosines(
    model: ReferenceModel, stored: Sequence[Sequence[float]], chunks: Sequence[Chunk]
) -> NDArray[np.float64]:
    if not chunks:
        return np.zeros(0)
    ordered = sorted(range(len(chunks)), key=lambda row: len(chunks[row].token_ids))
    computed = np.concatenate(
        [
            model.forward([chunks[row] for row in ordered[start : start + BATCH_CHUNKS]])
            for start in range(0, len(ordered), BATCH_CHUNKS)
        ]
    )
    units = unit_rows(np.array([stored[row] for row in ordered], np.float32))
    cosines = np.zeros(len(chunks))
    cosines[ordered] = np.einsum("ij,ij->i", computed.astype(np.float64), units)
    return cosines


def check_agreement(candidate: Candidate, agreement: Agreement) -> None:
    """Raise UsageError, with what it means and the way out, if too few vectors agree."""
    table, cosines = candidate.spec.target, agreement.cosines
    if not len(cosines):
        raise UsageError(
            f"none of {sum(agreement.worths.values()):,} chunks drawn from {table} stands for the"
            f" present text of its record ({describe_agreement(agreement.worths)}), so that nothing"
            f" would be adopted; {ANEW}"
        )
    if agreement.share >= LOWEST_SHARE:
        return
    what = (
        f"of {len(cosines):,} vectors of {table}, {percent(agreement.share, 0)} agree with"
        f" {candidate.identity.name} (median cosine {agreement.median:.4f}, --min-cosine"
        f" {agreement.min_cosine:g})"
    )
    if agreement.median < NEARLY:
        raise UsageError(
            f"{what}: another model, pooling or prompt made them; name the model, or {ANEW}"
        )
    least = np.floor(100 * np.quantile(cosines, 1 - LOWEST_SHARE)) / 100
    raise UsageError(
        f"{what}: they are of texts that were changed before embedding, such as “[CLS] … [SEP]”, or"
        f" of low precision; {ANEW}, or accept them as they are: --min-cosine {least:g}"
    )


ANEW = "embed anew, into another table: pgembed create"

# Texts that are nearly the same have vectors above this; those of other models lie far below.
NEARLY = 0.9

WORDS = {
    Assessment.EMPTY: "without text",
    Assessment.WRONG_VECTORS: "with unusable vectors",
    Assessment.TEXT_DIFFERS: "with another text",
    Assessment.CUT_OFF: "longer than the model reads",
    Assessment.GONE: "of records that are gone",
}


def describe_agreement(worths: Mapping[Assessment, int]) -> str:
    """Return what is wrong with chunks, as a list: ``3 with another text, 1 of …``."""
    return ", ".join(f"{worths[each]:,} {words}" for each, words in WORDS.items() if worths[each])
