"""Tries a condition that a person typed: whether PostgreSQL takes it for one, and nothing else."""

from __future__ import annotations

import psycopg
from psycopg import sql

from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.faults import UNKNOWN
from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.steps import AnyConnection, Step, Steps, in_savepoint, run, sent
from pgqueue_embed.source.read import condition

# As it was typed, so that what PostgreSQL says is about that; and inside CASE, where a parenthesis
# of it cannot close one of ours, and nothing that may follow a WHERE can follow it.
FORMS = (
    "explain select 1 from {relation} where {where}",
    "select 1 from {relation} where case when {where}\nthen true end limit 0",
)

NAME_IT_FULLY = "; what is not PostgreSQL's own is named with its schema: schema.name"
NAME_IT_BARE = "; a column is named as it is, or as source.column"


def refusal(connection: Connection, relation: sql.Composable, where: str) -> str | None:
    """Return why PostgreSQL refuses `where` as a condition over `relation`; None if it does not.

    A statement that follows a semicolon in it is refused, and not executed.
    """
    with connection.transaction():
        return run(connection, refusal_found(connection, relation, where))


def refusal_found(
    connection: AnyConnection, relation: sql.Composable, where: str
) -> Steps[str | None]:
    """Do what `refusal` does, in a transaction."""
    for form in FORMS:
        query = sql.SQL(form).format(relation=relation, where=condition(where))
        try:
            # In the protocol of a binary answer a query is one statement.
            yield from in_savepoint(connection, sent(Step(query, (), binary=True)))
        except psycopg.Error as error:
            if connection.closed:
                raise
            return _why(error)
    return None


def _why(error: psycopg.Error) -> str:
    if error.diag.source_function == "exec_parse_message":
        return "it is more than one statement; a condition has no semicolon"
    if error.diag.source_function == "exec_bind_message":
        return "it has a parameter, $1 or another; write the value in its place"
    if error.diag.source_function == "errorMissingRTE":
        return first_line(error) + NAME_IT_BARE
    return first_line(error) + (NAME_IT_FULLY if isinstance(error, UNKNOWN) else "")
