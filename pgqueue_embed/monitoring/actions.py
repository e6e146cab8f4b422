"""Actions of a person who is looking, by the functions of the commands, and their answers."""

from __future__ import annotations

from collections.abc import Callable

import psycopg

from pgqueue_embed.db.errors import refused
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import PgembedError
from pgqueue_embed.pipeline.catalog import (
    BY_A_PERSON,
    load_pipeline,
    pause_pipeline,
    resume_pipeline,
)
from pgqueue_embed.quantities import count
from pgqueue_embed.queue import dead_letters

Action = Callable[[Connection], str]


def act(conninfo: str, action: Action) -> str:
    """Do `action` over a connection of its own, and return what it says, or why it was not done."""
    try:
        with connect(conninfo) as connection:
            return action(connection)
    except PgembedError as error:
        return f"not done: {error}"
    except psycopg.Error as error:
        return f"not done: {refused(error)}"


def pause(connection: Connection, name: str) -> str:
    """Pause the pipeline `name`; workers finish what they hold."""
    pause_pipeline(connection, load_pipeline(connection, name), BY_A_PERSON)
    return f"paused {name}"


def resume(connection: Connection, name: str) -> str:
    """Let workers go on with the pipeline `name`."""
    resume_pipeline(connection, load_pipeline(connection, name))
    return f"resumed {name}"


def retry(connection: Connection, name: str, kind: str | None) -> str:
    """Put the dead letters of pipeline `name` back, those of one `kind` of error if it is given."""
    retried = dead_letters.retry(connection, load_pipeline(connection, name), kind=kind)
    return f"put {count(retried, 'dead letter')} of {name} back into the queue"
