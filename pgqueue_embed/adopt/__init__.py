"""Adopting: a table of vectors that is there becomes the target of a pipeline.

In order: `prepare_adoption` checks tables and model, `compare_sample` computes a sample of the
vectors again, `attach_table` makes the pipeline and the columns that the table lacks, and
`adopt_records` goes through the source: what is right is settled, everything else queued. `survey`
only looks.
"""

from pgqueue_embed.adopt.attach import attach_table, ensure_key_index
from pgqueue_embed.adopt.candidate import (
    Candidate,
    local_model,
    make_judge,
    prepare_adoption,
    resumable,
)
from pgqueue_embed.adopt.dry_run import Survey, survey
from pgqueue_embed.adopt.run import adopt
from pgqueue_embed.adopt.sample import (
    MIN_COSINE,
    SAMPLE_CHUNKS,
    Agreement,
    check_agreement,
    compare_sample,
    describe_agreement,
)
from pgqueue_embed.adopt.scan import adopt_records

__all__ = [
    "MIN_COSINE",
    "SAMPLE_CHUNKS",
    "Agreement",
    "Candidate",
    "Survey",
    "adopt",
    "adopt_records",
    "attach_table",
    "check_agreement",
    "compare_sample",
    "describe_agreement",
    "ensure_key_index",
    "local_model",
    "make_judge",
    "prepare_adoption",
    "resumable",
    "survey",
]
