"""The condition that a filter is, which is data: pgembed.search_condition makes it, as in SQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.faults import is_given_back, is_of_the_role, is_raised_by_a_function
from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.steps import run
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.untrusted.plain_json import finite, json_text
from pgqueue_embed.vector_search.query import check_present


def condition_of(
    connection: Connection, pipeline: Pipeline, given: Mapping[str, Any]
) -> str | None:
    """Return a filter as SQL, in which its values are data; raises UsageError for what is none."""
    query = "select pgembed.search_condition(pipelines, %s) from pgembed.pipelines where id = %s"
    try:
        # An assistant's 1e999 has become infinity.
        wanted = Jsonb(finite(dict(given)), dumps=json_text)
        condition: str | None = connection.value(query, (wanted, pipeline.id))
        return condition
    except psycopg.Error as error:
        if connection.closed or is_of_the_role(error) or is_given_back(error):
            raise
        run(connection, check_present(pipeline))
        hint = f"; {error.diag.message_hint}" if error.diag.message_hint else ""
        # Our own words tell what is wrong with the filter, PostgreSQL's about its texts do not.
        about = "" if is_raised_by_a_function(error) else "filter: "
        raise UsageError(f"{about}{first_line(error)}{hint}") from None
