"""Records whose deletion was announced already: by triggers, programs or earlier sweeps.

Their keys wait in the queue, in no order that a slice of the ledger could be compared with. They
are read once a sweep, when the first record is found to be gone, and kept as hashes of eight bytes:
of two million keys, 16 MB. Of two keys with one hash, one may be left to the next sweep.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline

# An item in flight does not say that its claim will see the record gone: see enqueue.
TOLD = """
select keys, id not in (select work_id from pgembed.claimed_work)
from pgembed.work
where pipeline_id = %s and allow_deletes and sweep_after is null
"""

ITEMS_AT_ONCE = 1_000

Hashes = NDArray[np.int64]


class Told:
    """The keys in the queue of one pipeline that may be of deleted records."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._waiting: Hashes | None = None
        self._in_flight: Hashes | None = None

    def count_untold(self, connection: Connection, keys: Sequence[str]) -> int:
        """Return of how many of `keys` has not been announced."""
        waiting, in_flight = self._read(connection)
        hashes = _hashes([keys])
        return int(np.count_nonzero(~(_among(hashes, waiting) | _among(hashes, in_flight))))

    def without_waiting(self, connection: Connection, keys: Sequence[str]) -> list[str]:
        """Return those of `keys` that do not wait for a claim yet to come."""
        waiting, _ = self._read(connection)
        known = _among(_hashes([keys]), waiting)
        return [key for key, waits in zip(keys, known, strict=True) if not waits]

    def _read(self, connection: Connection) -> tuple[Hashes, Hashes]:
        if self._waiting is None or self._in_flight is None:
            parts: dict[bool, list[Hashes]] = {True: [], False: []}
            for rows in _portions(connection, self._pipeline):
                for waits, listed in parts.items():
                    listed.append(_hashes([keys for keys, each in rows if each == waits]))
            self._waiting, self._in_flight = (
                np.sort(np.concatenate([_hashes([]), *parts[waits]])) for waits in (True, False)
            )
        return self._waiting, self._in_flight


def _portions(
    connection: Connection, pipeline: Pipeline
) -> Iterator[Sequence[tuple[list[str], bool]]]:
    with connection.transaction(), connection.cursor("told") as cursor:
        cursor.execute(TOLD, (pipeline.id,))
        while rows := cursor.fetchmany(ITEMS_AT_ONCE):
            yield rows


def _among(hashes: Hashes, ordered: Hashes) -> NDArray[np.bool_]:
    """Return which of `hashes` are in `ordered`, without reading all of it for each slice."""
    if not len(ordered):
        return np.zeros(len(hashes), dtype=np.bool_)
    places = np.searchsorted(ordered, hashes).clip(max=len(ordered) - 1)
    matches: NDArray[np.bool_] = ordered[places] == hashes
    return matches


def _hashes(lists: Sequence[Sequence[str]]) -> Hashes:
    return np.fromiter(map(hash, chain.from_iterable(lists)), dtype=np.int64)
