"""Number of records in a work item."""

from __future__ import annotations

MAX_ITEM_RECORDS = 256

# A queue of fewer items than this could not be shared evenly by a handful of workers.
WANTED_ITEMS = 64


def records_per_item(estimated_records: int) -> int:
    """Return how many keys a work item holds: fewer where a small source is to be shared."""
    return max(8, min(MAX_ITEM_RECORDS, estimated_records // WANTED_ITEMS))
