"""The dry run of an adoption: its findings counted, nothing changed."""

from __future__ import annotations

from dataclasses import dataclass

from pgqueue_embed.adopt.attach import has_key_index
from pgqueue_embed.adopt.candidate import Candidate
from pgqueue_embed.adopt.scan import count_assessments, table_keys
from pgqueue_embed.adopt.slices import next_slice
from pgqueue_embed.db.session import Connection
from pgqueue_embed.queue.adoptions import Counts

# Enough to see what is there; of a larger source the first records, of a larger table the first
# keys.
SURVEY_RECORDS = 20_000

# Without an index on the key, a slice of records has its chunks looked for in the whole table.
SURVEY_RECORDS_WITHOUT_INDEX = 500


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found of `records` records and `keys` keys; `is_whole` if these are all."""

    counts: Counts
    records: int
    keys: int
    is_whole: bool


def survey(connection: Connection, candidate: Candidate) -> Survey:
    """Judge the first records of the source, and look the first keys of the table up."""
    indexed = has_key_index(connection, candidate.pipeline)
    most_records = SURVEY_RECORDS if indexed else SURVEY_RECORDS_WITHOUT_INDEX
    judge = candidate.judge()
    counts, records, last_key = Counts(), 0, None
    while True:
        judged = next_slice(connection, candidate.pipeline, judge, last_key=last_key)
        counts += count_assessments(
            judged, {key: each.worth for key, each in judged.judgements.items()}
        )
        records += len(judged.records)
        last_key = judged.last_key
        if last_key is None or records >= most_records:
            break
    keys = table_keys(connection, candidate.pipeline, None, most_records + 1)
    counts += Counts(gone=sum(gone for _, gone in keys[:most_records]))
    return Survey(
        counts=counts,
        records=records,
        keys=min(len(keys), most_records),
        is_whole=last_key is None and len(keys) <= most_records,
    )
