"""Adopting from beginning to end, without a question; the command line asks in between."""

from __future__ import annotations

from pgqueue_embed.adopt.attach import attach_table, ensure_key_index
from pgqueue_embed.adopt.candidate import local_model, make_judge, prepare_adoption, resumable
from pgqueue_embed.adopt.sample import check_agreement, compare_sample
from pgqueue_embed.adopt.scan import adopt_records
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.queue.adoptions import Counts


def adopt(
    connection: Connection,
    spec: PipelineSpec,
    model_reference: str,
    *,
    sample_chunks: int,
    min_cosine: float,
) -> Counts:
    """Adopt the target of `spec`, or go on with it; returns what was found.

    Raises as `prepare_adoption`, `check_agreement` and `attach_table` do; then nothing is changed.
    """
    pipeline = resumable(connection, spec.name, spec)
    if pipeline is not None:
        judge = make_judge(local_model(pipeline), pipeline)
    else:
        candidate = prepare_adoption(connection, spec, model_reference)
        agreement = compare_sample(
            connection, candidate, sample_chunks=sample_chunks, min_cosine=min_cosine
        )
        check_agreement(candidate, agreement)
        pipeline = attach_table(connection, candidate, agreement.doubtful)
        judge = candidate.judge()
    ensure_key_index(connection, pipeline)
    return adopt_records(connection, pipeline, judge)
