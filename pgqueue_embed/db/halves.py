"""Finds the items that fail, by halving a set that fails down to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def by_halves(
    items: Sequence[Item],
    attempt: Callable[[Sequence[Item]], None],
    refuse: Callable[[Item, str], None],
    *,
    reason: Callable[[Exception], str],
) -> None:
    """Call `attempt` with all `items`, or where that fails with halves of them, in order.

    `refuse` is called with an item that fails by itself, and why. `reason` returns what an error
    says of an item, and raises it if it is not about one.
    """
    if not items:
        return
    try:
        attempt(items)
    except Exception as error:  # noqa: BLE001 - `reason` decides
        why = reason(error)
    else:
        return
    if len(items) == 1:
        refuse(items[0], why)
        return
    middle = len(items) // 2
    for half in (items[:middle], items[middle:]):
        by_halves(half, attempt, refuse, reason=reason)
