"""The mutexes of two records, taken one row after the other by two workers that hold both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# Of each worker, how many mutexes it holds; -1 when it has committed.
Held = tuple[int, int]

DONE = -1


@dataclass(frozen=True, kw_only=True)
class MutexOrder:
    """Two workers, each with its records in the order in which it locks them."""

    orders: tuple[tuple[str, ...], tuple[str, ...]]

    def initial(self) -> Held:
        """Return the beginning: nobody holds anything."""
        return (0, 0)

    def is_finished(self, held: Held) -> bool:
        """Return whether both workers have committed."""
        return held == (DONE, DONE)

    def breach(self, held: Held) -> str | None:
        """Return nothing: two holders of one mutex cannot be said in this model."""
        del held
        return None

    def steps(self, held: Held) -> Iterator[tuple[str, Held]]:
        """Return what each worker can do: lock its next record, or commit."""
        for worker in (0, 1):
            order = self.orders[worker]
            if held[worker] == len(order):
                yield f"worker {worker}: commits", _with(held, worker, DONE)
            elif held[worker] != DONE and order[held[worker]] not in self._locked(held, 1 - worker):
                yield (
                    f"worker {worker}: locks {order[held[worker]]}",
                    _with(held, worker, held[worker] + 1),
                )

    def _locked(self, held: Held, worker: int) -> tuple[str, ...]:
        return self.orders[worker][: max(held[worker], 0)]


def _with(held: Held, worker: int, value: int) -> Held:
    return (value, held[1]) if worker == 0 else (held[0], value)
