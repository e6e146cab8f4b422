"""The parts of a target table: by the key of its records, so that a record lies in one part.

PostgreSQL makes a row unique only within what it is parted by. Parted by the key, a chunk is unique
by its record and its number as in any other table, and who looks for a record's chunks looks into
one part. A column that is no part of the key could change, and leave chunks behind in another part.
"""

from __future__ import annotations

from dataclasses import dataclass

from pgqueue_embed.errors import UsageError

# Each claim may lock every part with its indexes, and a server keeps track of some thousand locks.
MOST_PARTS = 256

EXAMPLES = "hash:16, or range:year:2024,2025,2026 where the key has a column year"


@dataclass(frozen=True, kw_only=True)
class Partitioning:
    """Parts by hash of the key, `hashed` many, or by ranges of one `column` of it.

    A range begins at each of `bounds` and ends before the next; one more part has what is in none.
    """

    hashed: int = 0
    column: str | None = None
    bounds: tuple[str, ...] = ()


def parse_partitioning(text: str) -> Partitioning:
    """Return what ``hash:16`` or ``range:year:2024,2025`` says; UsageError for what says nothing.

    A bound is a value as PostgreSQL reads it, ``2024-01-01`` for a date.
    """
    method, _, rest = text.partition(":")
    if method == "hash":
        return Partitioning(hashed=_number_of_parts(text, rest))
    if method == "range":
        column, _, listed = rest.partition(":")
        bounds = tuple(bound.strip() for bound in listed.split(","))
        if column and 2 <= len(bounds) < MOST_PARTS and all(bounds):
            return Partitioning(column=column, bounds=bounds)
        raise UsageError(
            f"--partition-by {text}: name a column of the key and 2 to {MOST_PARTS - 1} values at"
            " which a part begins, the last one where the last part ends:"
            " range:year:2024,2025,2026"
        )
    raise UsageError(f"--partition-by {text}: give {EXAMPLES}")


def _number_of_parts(text: str, number: str) -> int:
    if number.isascii() and number.isdigit() and 2 <= int(number[:9]) <= MOST_PARTS:
        return int(number)
    raise UsageError(f"--partition-by {text}: give 2 to {MOST_PARTS} parts, such as hash:16")
