"""The one row, or the one value, that a query of a test has for an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql


def one_row(
    connection: psycopg.Connection[Any],
    query: str | sql.Composed,
    values: Sequence[Any] | Mapping[str, Any] | None = None,
) -> tuple[Any, ...]:
    """Return the first row of the answer; fails the test where there is none."""
    found = connection.execute(query, values).fetchone()
    assert found is not None, f"no row: {query!r}"
    return tuple(found)


def one_value(
    connection: psycopg.Connection[Any],
    query: str | sql.Composed,
    values: Sequence[Any] | Mapping[str, Any] | None = None,
) -> Any:
    """Return the value of a row that has one; fails the test where there is none."""
    (found,) = one_row(connection, query, values)
    return found
