"""Keys that are given as texts, as the queue, the ledger and hits have them."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.steps import Step, Steps
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline

CANONICAL = "select pgembed.canonical_keys(%s, pipelines) from pgembed.pipelines where id = %s"


def canonical_keys(pipeline: Pipeline, keys: Sequence[str]) -> Steps[list[str]]:
    """Return `keys` as the pipeline writes them, each in its place.

    Where the pipeline is not there any more, they are left as they are. Raises UsageError for what
    can be no key of its source.
    """
    try:
        "".join(keys).encode()
        rows = yield Step(CANONICAL, (list(keys), pipeline.id))
    except UnicodeEncodeError as error:
        raise UsageError(f"a key is no text of Unicode: {error.reason}") from None
    except psycopg.DataError as error:
        raise no_key(error) from None
    return rows[0][0] if rows else list(keys)


def no_key(error: psycopg.Error) -> UsageError:
    """Return what is wrong with a key that pgembed.canonical_keys refuses, and what one is."""
    return UsageError("; ".join(filter(None, (first_line(error), error.diag.message_hint))))
